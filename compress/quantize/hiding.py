"""Keeps from torch.ao what must stay float, by showing it something that it does not know.

A qconfig of None is not enough: conversion lowers whatever stands between a dequantize and a
quantize and has some int8 kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.quantize.fx_backend import observed_targets
from compress.quantize.islands import Opaque

# int8 kernels are missing, or emulate float and lose both time and accuracy; that of PReLU is far
# off where there is one slope
_FLOAT_MODULES = (
    nn.LayerNorm, nn.GroupNorm, nn.modules.instancenorm._InstanceNorm, nn.Softmax, nn.PReLU,
    nn.Embedding, nn.EmbeddingBag, nn.RNNBase, nn.RNNCellBase,
)  # fmt: skip
_FLOAT_FUNCTIONS: frozenset[Any] = frozenset(
    {
        F.layer_norm, F.group_norm, F.instance_norm, F.softmax, torch.softmax, torch.matmul,
        "matmul", "softmax", F.embedding, F.embedding_bag,
    }
)  # fmt: skip
_ON_ONE_SCALE: frozenset[Any] = frozenset(
    {
        operator.add, operator.iadd, torch.add, operator.mul, operator.imul, torch.mul,
        torch.cat, torch.stack,
    }
)  # fmt: skip
_RESHAPING: frozenset[Any] = frozenset(
    {
        "reshape", "view", "transpose", "permute", "contiguous", "flatten", "squeeze", "unsqueeze",
        torch.reshape, torch.transpose, torch.permute, torch.flatten, torch.squeeze,
        torch.unsqueeze, operator.getitem,
    }
)  # fmt: skip
PRODUCTS: frozenset[Any] = frozenset(
    {
        F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    }
)  # fmt: skip
"""Functions of an activation, weights and a bias."""
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


def hide_float_parts(graph_module: fx.GraphModule) -> None:
    """Hide what has no int8 kernel worth having, in place."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, _FLOAT_MODULES):
                graph_module.set_submodule(str(node.target), Opaque(module))
        elif node.target in _FLOAT_FUNCTIONS or (
            node.target in PRODUCTS and not _has_own_weight(node)
        ):
            hide(node)
    _hide_what_feeds_them(graph_module)


def _hide_what_feeds_them(graph_module: fx.GraphModule) -> None:
    """What something float takes in gains nothing from int8, and loses to a scale that is shared.

    Such are the residual stream of a transformer, whose norms undo every scale but no rounding,
    scores with a mask, whose range leaves no bits to the scores, and the mask itself, on its way.
    """
    observed = observed_targets()
    float_ones: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        users = [user in float_ones for user in node.users]
        if node.target in _RESHAPING:
            if users and all(users):
                float_ones.add(node)
                if node.target in observed:
                    hide(node)
        elif node.op == "call_module":
            if isinstance(graph_module.get_submodule(str(node.target)), Opaque):
                float_ones.add(node)
        elif node.op in ("call_function", "call_method") and (
            node.target not in observed or (any(users) and node.target in _ON_ONE_SCALE)
        ):
            float_ones.add(node)
            if node.target in observed:
                hide(node)


def reveal(graph_module: fx.GraphModule) -> None:
    """Show everything that was hidden again, in place."""
    for node in graph_module.graph.nodes:
        hidden = getattr(node.target, "hides", None)
        if hidden is not None:
            node.op, node.target = hidden
        elif node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, Opaque):
                graph_module.set_submodule(str(node.target), module.held)
    graph_module.recompile()


def hide(node: fx.Node) -> None:
    """Let one call of a function or method look like one of an unknown function."""
    op, target = node.op, node.target
    call: Callable[..., Any] = _caller(str(target)) if op == "call_method" else target  # type: ignore[assignment]

    def hidden(*args: Any, **kwargs: Any) -> Any:
        return call(*args, **kwargs)

    hidden.hides = (op, target)  # type: ignore[attr-defined]
    node.op, node.target = "call_function", hidden


def hide_like(graph_module: fx.GraphModule, failing: fx.Node) -> bool:
    """Hide what a node of the converted graph stands for; False where that cannot be told.

    Args:
        graph_module: The graph before it was prepared; changed in place.
        failing: Of the converted graph. Of a function, all calls are hidden.
    """
    found = False
    for node in graph_module.graph.nodes:
        if node.op != failing.op or node.target != failing.target:
            continue
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if not isinstance(module, Opaque):
                graph_module.set_submodule(str(node.target), Opaque(module))
                found = True
        else:
            hide(node)
            found = True
    graph_module.recompile()
    return found


def _caller(method: str) -> Callable[..., Any]:
    def call(receiver: Any, *args: Any, **kwargs: Any) -> Any:
        return getattr(receiver, method)(*args, **kwargs)

    return call


def _has_own_weight(node: fx.Node) -> bool:
    """Whether a product's weight is read as it is: torch.ao fails where it is computed.

    Of transposed convolutions, whose kernels are not all to be trusted, only layers are looked at.
    """
    if node.target in _TRANSPOSED:
        return False
    weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return all(not isinstance(each, fx.Node) or each.op == "get_attr" for each in (weight, bias))
