"""Runs a graph node by node on several batches at once, for algorithms that go layer by layer."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import fx

from compress.structure import batch_length


class Stepper:
    """One run of a graph that stands still at every node.

    Values live until their last use, as in an ordinary run, but those of all batches at once.

    Args:
        graph_module: The graph. A weight that is changed before its node is run counts.
        batches: Inputs of each batch.
    """

    def __init__(self, graph_module: fx.GraphModule, batches: Sequence[Sequence[Any]]) -> None:
        self.graph_module = graph_module
        self._runs = []
        for batch in batches:
            run = fx.Interpreter(graph_module)
            run.args_iter = iter(batch)
            self._runs.append(run)

    def nodes(self) -> Iterator[fx.Node]:
        """Yield each node, its inputs computed; on going on, it is run."""
        for node in self.graph_module.graph.nodes:
            yield node
            with torch.no_grad():
                for run in self._runs:
                    run.env[node] = run.run_node(node)
                    for done in run.user_to_last_uses.get(node, []):
                        del run.env[done]

    def inputs(self, node: fx.Node) -> list[Any]:
        """Return what the first argument of a node is, for each batch."""
        source = node.args[0]
        assert isinstance(source, fx.Node)
        return self.values(source)

    def values(self, node: fx.Node) -> list[Any]:
        """Return what a node that was run gave, for each batch, until its last use."""
        return [run.env[node] for run in self._runs]


def keep_first(
    batches: Iterable[Sequence[Any]], samples: int
) -> tuple[list[Sequence[Any]], Iterable[Sequence[Any]]]:
    """Take the first samples from batches that can be read once.

    Args:
        batches: Is not read further than it must be.
        samples: How many; what is above of the last batch is kept, too.

    Returns:
        The first batches, and all batches.
    """
    kept: list[Sequence[Any]] = []
    rest = iter(batches)
    taken = 0
    while taken < samples:
        batch = next(rest, None)
        if batch is None:
            break
        kept.append(batch)
        taken += batch_length(batch)
    return kept, itertools.chain(kept, rest)


def called_once(graph_module: fx.GraphModule) -> dict[str, fx.Node]:
    """Return the modules that the graph calls once, and of whose weights nothing else knows."""
    calls: dict[str, list[fx.Node]] = {}
    owners: dict[int, set[str]] = {}
    for node in graph_module.graph.nodes:
        if node.op == "call_module":
            calls.setdefault(str(node.target), []).append(node)
            for parameter in graph_module.get_submodule(str(node.target)).parameters():
                owners.setdefault(id(parameter), set()).add(str(node.target))
        elif node.op == "get_attr":
            path = str(node.target)
            owner, _, leaf = path.rpartition(".")
            value = getattr(graph_module.get_submodule(owner), leaf)
            owners.setdefault(id(value), set()).add(path)
    return {
        name: nodes[0]
        for name, nodes in calls.items()
        if len(nodes) == 1
        and all(
            owners[id(parameter)] == {name}
            for parameter in graph_module.get_submodule(name).parameters()
        )
    }
