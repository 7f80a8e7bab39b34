"""Casts at the borders of a graph, so that a half or double model stays one from outside."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from compress.lift.guards import expect_tensor


def match_dtypes(model: fx.GraphModule, dtype: torch.dtype, probe: Sequence[Any]) -> None:
    """Cast inside, so that arguments and outputs stay what they were, in place.

    Args:
        model: Computes in float32.
        dtype: Of the original's floating-point arguments and outputs.
        probe: Inputs in float32.
    """
    if dtype == torch.float32:
        return
    floats = _float_nodes(model, probe)
    output = model.graph.output_node()
    for node in list(model.graph.nodes):
        if node in floats and _is_given(node):
            users = list(node.users)
            with model.graph.inserting_after(node):
                wide = model.graph.call_method("float", (node,))
            floats.add(wide)  # the output may be an input as it came
            for user in users:
                user.replace_input_with(node, wide)
    with model.graph.inserting_before(output):
        output.args = fx.map_arg(
            output.args,
            lambda n: model.graph.call_method("to", (n, dtype)) if n in floats else n,
        )
    model.recompile()


def _is_given(node: fx.Node) -> bool:
    """Whether a node is an argument of the model, or a part of one, and surely there."""
    if any(user.target is expect_tensor for user in node.users):
        return False
    while node.target in (getitem, expect_tensor) and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node.op == "placeholder"


def _float_nodes(model: fx.GraphModule, probe: Sequence[Any]) -> set[fx.Node]:
    """Find the nodes that compute floating-point tensors, by running the graph on `probe`."""
    found: set[fx.Node] = set()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                found.add(n)
            return value

    with torch.no_grad():
        Recorder(model).run(*probe)
    return found
