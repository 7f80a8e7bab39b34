"""Facts that a graph takes for granted, in words."""

from __future__ import annotations

import operator
from typing import Any

import pytest
from torch import fx

from compress.lift.guards import Guard, describe
from compress.lift.islands import Place


def size_node() -> tuple[fx.Graph, fx.Node]:
    graph = fx.Graph()
    return graph, graph.call_method("size", (graph.placeholder("image"), 2))


@pytest.mark.parametrize(
    ("function", "value", "told"),
    [
        (lambda g, n: g.call_function(operator.gt, (n, 4)), True, "image.size(2) > 4"),
        (lambda g, n: g.call_function(operator.gt, (n, 4)), False, "image.size(2) <= 4"),
        (lambda g, n: n, 7, "image.size(2) == 7"),
        (lambda g, n: g.call_function(operator.mod, (n, 2)), 0, "image.size(2) % 2 == 0"),
        (lambda g, n: g.call_function(bool, (n,)), False, "not bool(image.size(2))"),
    ],
)
def test_a_guard_reads_as_one_would_write_it(function: Any, value: Any, told: str) -> None:
    graph, node = size_node()
    assert str(Guard(Place(""), function(graph, node), value)) == told


def test_sizes_of_sizes_are_cut_short() -> None:
    graph, node = size_node()
    for _ in range(80):  # spelt out, it would be longer than any memory
        node = graph.call_function(operator.add, (node, node))
    assert len(describe(node)) < 1000
