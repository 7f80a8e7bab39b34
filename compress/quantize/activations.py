"""What activations look like, from one pass over the calibration data, for many plans.

Plans for one graph differ in which layers are int8, and so in where observers stand. The float
values are the same in all of them: they are counted once, at every node.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress.quantize.fx_observers import RangeObserver
from compress.quantize.histogram import StreamingHistogram

_Key = tuple[str, type | None]
"""A node's name, and the class of the module that it calls: one fused with its relu is another."""


class Activations:
    """Histograms of a graph's values, kept for all plans that it is quantized by."""

    def __init__(
        self, batches: Callable[[], Iterable[Sequence[Any]]], *, counts: bool = True
    ) -> None:
        """Nothing is run yet.

        Args:
            batches: Gives the calibration batches, each time anew.
            counts: Whether more than extremes is wanted; see `StreamingHistogram`.
        """
        self._batches = batches
        self._counts = counts
        self._seen: dict[_Key, StreamingHistogram] = {}

    def fill_(self, prepared: fx.GraphModule) -> None:
        """Give each observer what it would see in a run over the calibration data.

        The data is read where a value is asked for that no plan before had: as a rule once.

        Args:
            prepared: With observers that have seen nothing, its islands hidden.
        """
        observers = _observers(prepared)
        wanted = [
            (observer, _key(prepared, node.all_input_nodes[0]))
            for node, observer in observers.items()
            if type(observer) is RangeObserver
        ]
        if any(key not in self._seen for _, key in wanted):
            self._count(prepared, observers)
        for observer, key in dict.fromkeys(wanted):
            observer.histogram.merge(self._seen[key])

    def _count(self, prepared: fx.GraphModule, observers: dict[fx.Node, RangeObserver]) -> None:
        new = {
            node: StreamingHistogram(counts=self._counts)
            for node in prepared.graph.nodes
            if node not in observers and _key(prepared, node) not in self._seen
        }
        run = _Counter(prepared, observers, new)
        with torch.no_grad():
            for batch in self._batches():
                run.run(*batch)
        self._seen |= {_key(prepared, node): histogram for node, histogram in new.items()}


class _Counter(fx.Interpreter):
    """Runs a prepared graph past its observers, and counts every float value."""

    def __init__(
        self,
        prepared: fx.GraphModule,
        observers: dict[fx.Node, RangeObserver],
        histograms: dict[fx.Node, StreamingHistogram],
    ) -> None:
        super().__init__(prepared)
        self._observers = observers
        self._histograms = histograms

    def run_node(self, n: fx.Node) -> Any:
        if n in self._observers:
            return self.env[n.all_input_nodes[0]]
        value = super().run_node(n)
        if n in self._histograms and isinstance(value, Tensor) and value.dtype == torch.float32:
            self._histograms[n].add(value)
        return value


def _observers(prepared: fx.GraphModule) -> dict[fx.Node, RangeObserver]:
    """Calls of observers; one observer may look at several values, which then share a scale."""
    called = {
        node: prepared.get_submodule(str(node.target))
        for node in prepared.graph.nodes
        if node.op == "call_module"
    }
    return {node: each for node, each in called.items() if isinstance(each, RangeObserver)}


def _key(prepared: fx.GraphModule, node: fx.Node) -> _Key:
    called = type(prepared.get_submodule(str(node.target))) if node.op == "call_module" else None
    return node.name, called
