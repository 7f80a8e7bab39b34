"""What lifting gives back."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import fx


@dataclass(frozen=True, kw_only=True)
class LiftReport:
    """What was found in a model and how well it was lifted.

    Attributes:
        operators: TorchScript operator to how often it was met on the way taken.
        guards: Facts about the sizes of the inputs that the graph takes for granted.
        modules: Dotted name to type of each module formed again.
        islands: Names of regions left as they were.
        dynamic_dims: Input name to the axes proved to vary.
        parameters: Elements of the original's parameters.
        parameters_lifted: Elements of the lifted graph's parameters.
        max_relative_error: Largest error found by verification, relative to the largest output.
        seconds: Time that lifting took, verification included.
    """

    operators: dict[str, int]
    guards: list[str]
    modules: dict[str, str]
    islands: list[str] = field(default_factory=list)
    dynamic_dims: dict[str, list[int]] = field(default_factory=dict)
    parameters: int
    parameters_lifted: int
    max_relative_error: float = 0.0
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Lifted:
    """A lifted model: the graph to train or quantize, and the original it must agree with."""

    graph_module: fx.GraphModule
    report: LiftReport
    original: torch.jit.ScriptModule
