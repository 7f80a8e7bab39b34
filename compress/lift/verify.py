"""Compares the lifted graph with the original, on the example and at other sizes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from compress.errors import LiftMismatch
from compress.lift.agreement import Agreement, ByFormulas
from compress.lift.builder import GraphBuilder
from compress.lift.compare import (
    TOLERANCE,
    first_difference,
    mismatch,
    relative_error,
)
from compress.lift.guards import Guard
from compress.lift.islands import IslandNeeded, Place
from compress.lift.load import forward_arguments
from compress.lift.oracle import Oracle
from compress.lift.vary import Axes, Sizes, other_batch_sizes, parts_of, resized, shorter
from compress.structure import tensors_in

_MOST_AXES = 8
_MOST_HALVINGS = 4
_MUCH = 10**10
"""Operations, a tenth of a second of one core; more are not run where formulas say the same."""


@dataclass(frozen=True)
class Walk:
    """A lifted graph as a walk left it.

    Attributes:
        graph_module: The graph.
        builder: What made it, with its guards, modules and islands.
        operators: TorchScript operator to how often it was met.
        assumed: What it takes for granted that no guard watches.
        computed: Its output for the inputs walked with.
    """

    graph_module: fx.GraphModule
    builder: GraphBuilder
    operators: dict[str, int]
    assumed: list[str]
    computed: Any


@dataclass
class Proof:
    """The worst error met, and for each input the axes shown to vary."""

    worst: float
    dynamic_dims: dict[str, list[int]]


class Verifier:
    """Compares a walk's graph with the original, also at other sizes.

    Args:
        oracle: The original.
        agreement: Compares with it.
        walk: The walk.
        inputs: The example.
        again: Walks anew on other inputs; None where that cannot be.
    """

    def __init__(
        self,
        oracle: Oracle,
        agreement: Agreement,
        walk: Walk,
        inputs: Sequence[Any],
        again: Callable[[Sequence[Any], Any], Walk | None],
    ) -> None:
        self._oracle = oracle
        self._agreement = agreement
        self._walk = walk
        self._inputs = inputs
        self._again = again
        self._worst = 0.0

    def verify(self, error: float | None, other_batches: int = 2) -> Proof:
        """Compare at other batch sizes, and at other lengths.

        Other batch sizes are tried on smaller images where the model takes them: that proves both
        at a fraction of the time.

        Args:
            error: Of what the walk computed for the example; None if the original raises there.
            other_batches: At how many other batch sizes.

        Raises:
            LiftMismatch: They disagree.
            IslandNeeded: They disagree since control flow hangs on the batch size.
        """
        self._judge(self._inputs, error)
        axes_of = Sizes(self._inputs, self._walk.builder.set_axes)
        batch = axes_of.batch()
        sizes = other_batch_sizes(batch.length)[:other_batches] if batch is not None else []
        beside = [(batch, sizes[0])] if batch is not None and sizes else []
        free: list[Axes] = []
        proved: set[int] = set()
        for axes in axes_of.others()[:_MOST_AXES]:
            part, with_batch = self._free_among(axes, beside)
            if part is not None:
                free.append(part)
                proved |= set(sizes[:1]) if with_batch else set()
        small = [(axes, shorter(axes.length)) for axes in free]
        for size in sizes:
            for lengths in (small, []) if small else ([],):
                if size not in proved and self._agrees([(batch, size), *lengths]):
                    proved.add(size)
        if isinstance(self._agreement, ByFormulas) and not self._agreement.has_run:
            self._run_little(batch if proved else None, free, self._agreement)
        if proved and batch is not None:
            free.append(batch)
        elif batch is not None:  # its first axes had one length by chance
            same = axes_of.of_length(batch.length)
            part = self._free_among(same, [])[0] if same is not None else None
            free += [part] if part is not None else []
        if not free:
            self._judge(self._inputs, self._error(self._inputs))
        return Proof(self._worst, self._name([m for axes in free for m in axes.members]))

    def _free_among(self, axes: Axes, beside: list[tuple[Axes, int]]) -> tuple[Axes | None, bool]:
        """The axes, or those of them that both models take at another length.

        Returns:
            None where there are none; and whether `beside` took its other length with them.
        """
        for part in parts_of(axes):
            for others in (beside, []) if beside else ([],):
                for given in resized(self._inputs, [(part, shorter(part.length)), *others], 1):
                    error = self._error(given)
                    if error is None:
                        continue
                    # where only the original takes the size or they differ, the size is fixed
                    if error <= TOLERANCE:
                        self._worst = max(self._worst, error)
                        return part, bool(others)
                    break
        return None, False

    def _agrees(self, lengths: list[Any]) -> bool:
        """Whether the original takes such inputs; raises where the graph then differs."""
        for given in resized(self._inputs, lengths, lengths[0][1]):
            error = self._error(given)
            if error is not None:
                self._judge(given, error)
                return True
        return False

    def _run_little(self, batch: Axes | None, free: list[Axes], by_formulas: ByFormulas) -> None:
        """Run both on little, once: the smallest batch, and lengths halved while it is much."""
        lengths = [(batch, min(1, batch.length))] if batch is not None else []
        for given in self._smaller_and_smaller(lengths, free):
            known = by_formulas.original(given)
            if known is None:
                return
            if known[2] <= _MUCH:
                error = by_formulas.numbers.error(self._walk.graph_module, given)
                if error is not None:
                    self._judge(given, error)
                return

    def _smaller_and_smaller(
        self, lengths: list[tuple[Axes, int]], free: list[Axes]
    ) -> Iterator[list[Any]]:
        yield next(resized(self._inputs, lengths, 1))
        now = [(axes, axes.length) for axes in free]
        for _ in range(_MOST_HALVINGS if free else 0):
            now = [(axes, shorter(length)) for axes, length in now]
            yield next(resized(self._inputs, [*lengths, *now], 1))

    def _error(self, inputs: Sequence[Any]) -> float | None:
        return self._agreement.error(self._walk.graph_module, inputs)

    def _judge(self, inputs: Sequence[Any], error: float | None) -> None:
        if error is not None and error <= TOLERANCE:
            self._worst = max(self._worst, error)
            return
        expected = self._oracle.run(inputs)
        if relative_error(self._oracle.run(inputs), expected) > TOLERANCE:
            raise LiftMismatch(
                "The model gives another output each time for one input, so nothing can be "
                "compared with it; export it in eval mode and without random operators."
            )
        other = self._again(inputs, expected)
        node = "output"
        if other is not None:
            place = _first_decision(self._walk.builder.guards, other.builder.guards)
            if place is not None:
                raise IslandNeeded(place, "its control flow depends on the size of the batch")
            node = first_difference(self._walk.graph_module, other.graph_module, inputs)
        shapes = [value.shape for value in tensors_in(list(inputs))]
        raise mismatch(node, shapes, float("inf") if error is None else error)

    def _name(self, members: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
        names = [
            name
            for argument, value in zip(
                forward_arguments(self._oracle.module), self._inputs, strict=False
            )
            for name in _leaf_names(argument.name, value)
        ]
        found: dict[str, list[int]] = {}
        for index, axis in sorted(members):
            found.setdefault(names[index], []).append(axis)
        return found


def _first_decision(mine: Sequence[Guard], others: Sequence[Guard]) -> Place | None:
    """Where two walks first decided differently."""
    for left, right in zip(mine, others, strict=False):
        if left.at != right.at or left.value != right.value:
            return left.at
    return None


def _leaf_names(name: str, value: Any) -> list[str]:
    """Names of the tensors in an argument, as dataset arrays are named: `x`, `x.0`, `x.key`."""
    if isinstance(value, Tensor):
        return [name]
    if isinstance(value, list | tuple):
        return [n for i, item in enumerate(value) for n in _leaf_names(f"{name}.{i}", item)]
    if isinstance(value, dict):
        return [n for key, item in value.items() for n in _leaf_names(f"{name}.{key}", item)]
    return []
