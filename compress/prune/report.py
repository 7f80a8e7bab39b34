"""What was cut, and why the rest was not."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import fx

from compress.prune.choosing import Kept
from compress.prune.tracing import Traced


@dataclass(frozen=True)
class PrunedLayer:
    """One layer that makes channels.

    Attributes:
        name: As in the model.
        type: Its class's name.
        channels: That it makes, before and after.
        reason: Why none was cut; None where some were.
    """

    name: str
    type: str
    channels: tuple[int, int]
    reason: str | None


@dataclass(frozen=True)
class PruneReport:
    """What pruning did.

    Attributes:
        share: Of channels, as asked for.
        parameters_before: Of the whole model.
        parameters_after: Of what is left.
        layers: In order of their first call.
    """

    share: float
    parameters_before: int
    parameters_after: int
    layers: list[PrunedLayer]

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def report(
    share: float, whole: fx.GraphModule, smaller: fx.GraphModule, traced: Traced, kept: Kept
) -> PruneReport:
    """Compare a graph with what pruning left of it."""
    return PruneReport(
        share, _parameters(whole), _parameters(smaller), list(_layers(whole, traced, kept))
    )


def _parameters(graph_module: fx.GraphModule) -> int:
    return sum(parameter.numel() for parameter in graph_module.parameters())


def _layers(whole: fx.GraphModule, traced: Traced, kept: Kept) -> Iterator[PrunedLayer]:
    held = traced.classes.held()
    for name, made in traced.makers.items():
        before, after = len(made), int(kept(made).sum())
        reasons = (held.get(each) for each in traced.classes.of(made).tolist())
        reason = next((each for each in reasons if each is not None), "it has too few channels")
        kind = "Linear" if name in traced.attributes else type(whole.get_submodule(name)).__name__
        yield PrunedLayer(name, kind, (before, after), reason if before == after else None)
