"""What lifting gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True)
class Island:
    """A region that stays TorchScript, float, as it was.

    Attributes:
        name: The module of the lifted graph that holds it; the original's name if it is a module.
        reason: Why it could not be lifted, as a sentence.
        parameters: Elements of the parameters that it uses.
    """

    name: str
    reason: str
    parameters: int


@dataclass(kw_only=True)
class LiftReport:
    """What was found in a model and how well it was lifted.

    Attributes:
        operators: TorchScript operator to how often it was met on the way taken.
        guards: Facts about the inputs that the graph takes for granted: `image.size(2) > 4`.
        modules: Dotted name to type of each module formed again.
        islands: Regions left as they were.
        dynamic_dims: Input name to the axes proved to vary.
        parameters: Elements of the original's parameters; of a frozen model, of its constants that
            are parameters again.
        parameters_lifted: Elements that can be trained and quantized: in no island, not unused.
        parameters_unused: Elements that forward does not read for such inputs.
        parameters_by_module: Dotted name to the elements lifted of each module.
        state: Dotted names of the attributes that the model keeps between calls.
        methods_dropped: Methods of the file beside forward, which a compressed file does not have.
        max_relative_error: Largest error found by verification, relative to the largest output.
        seconds: Time that lifting took, verification included.
    """

    operators: dict[str, int]
    guards: list[str]
    modules: dict[str, str]
    islands: list[Island] = field(default_factory=list)
    dynamic_dims: dict[str, list[int]] = field(default_factory=dict)
    parameters: int
    parameters_lifted: int
    parameters_unused: int = 0
    parameters_by_module: dict[str, int] = field(default_factory=dict)
    state: list[str] = field(default_factory=list)
    methods_dropped: list[str] = field(default_factory=list)
    max_relative_error: float = 0.0
    seconds: float = 0.0

    @property
    def island_reasons(self) -> dict[str, str]:
        """Name to reason of each island."""
        return {island.name: island.reason for island in self.islands}

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Lifted:
    """A lifted model: the graph to train or quantize, and the original it must agree with."""

    graph_module: fx.GraphModule
    report: LiftReport
    original: torch.jit.ScriptModule
