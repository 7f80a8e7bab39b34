"""Structured pruning: a smaller graph, of the channels that matter most."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import fx

from compress.errors import NothingToCompress
from compress.prune.choosing import choose
from compress.prune.cutting import cut
from compress.prune.fitting import Unfit
from compress.prune.importance import by_answers, by_weights
from compress.prune.report import PruneReport, report
from compress.prune.tracing import trace

_SIZES = "the model computes a size from it in a way that is not known"


@dataclass(frozen=True)
class Pruned:
    """A graph with fewer channels, and what was cut."""

    graph_module: fx.GraphModule
    report: PruneReport


def prune(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    share: float,
    *,
    batches: Sequence[Sequence[Any]] = (),
) -> Pruned:
    """Build a smaller model from a lifted graph by cutting channels.

    Whole channels go, from every weight that makes, scales or reads them, so what is left is
    smaller and faster as it stands. Channels that a residual adds are cut together, those that are
    concatenated each by itself, attention by whole heads. What the model takes and answers stays
    as it is. Weights that are left keep their values and names: the graph answers as the whole one
    would if no layer read the channels that are gone, and wants training.

    Source: Fang et al. 2023, DepGraph: Towards Any Structural Pruning, for what must go together.

    Args:
        graph_module: In eval mode; left as it is.
        example_inputs: One value for each argument, as it was lifted with.
        share: Of each layer's channels to cut, above 0 and below 1; what is left is rounded to a
            multiple of 8 where there are more. A layer that can lose none is named in the report.
        batches: Some inputs to judge channels by what they do to the answers. Without, they are
            judged by their weights.

    Raises:
        ValueError: `share` is not between 0 and 1.
        NothingToCompress: No channel can be cut.
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, not be {share}")
    traced = trace(graph_module, example_inputs)
    scores = by_weights(graph_module, traced)
    if batches:
        scores = by_answers(graph_module, traced, batches)
    while True:
        kept = choose(traced, scores, share)
        try:
            smaller = cut(graph_module, example_inputs, traced, kept)
        except Unfit as unfit:
            if not len(unfit.numbers):
                raise
            traced.classes.hold(unfit.numbers, _SIZES)
            continue
        told = report(share, graph_module, smaller, traced, kept)
        if told.parameters_after == told.parameters_before:
            raise NothingToCompress(_nothing(told))
        return Pruned(smaller, told)


def _nothing(told: PruneReport) -> str:
    if not told.layers:
        return "The model has no convolution or linear layer, so no channel can be cut."
    reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in told.layers[:5])
    return (
        f"None of the model's {len(told.layers)} layers can lose a channel ({reasons}). Give a "
        "student model of your own instead of a share to prune."
    )
