"""Keeps from torch.ao what must stay float, by showing it something that it does not know.

A qconfig of None is not enough: conversion lowers whatever stands between a dequantize and a
quantize and has some int8 kernel.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Collection
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
_SIZES: frozenset[Any] = frozenset({"size", "dim", "numel", getattr})
"""They ask a value for its shape, not for its elements."""
PRODUCTS: frozenset[Any] = frozenset(
    {
        F.linear, F.conv1d, F.conv2d, F.conv3d, torch.conv1d, torch.conv2d, torch.conv3d,
        F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    }
)  # fmt: skip
"""Functions of an activation, weights and a bias."""
_TRANSPOSED = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


_PRODUCT_MODULES = (nn.Linear, nn.modules.conv._ConvNd)
_BOUNDED_MODULES = (nn.Sigmoid, nn.Tanh, nn.Hardsigmoid)
_BOUNDED: frozenset[Any] = frozenset(
    {
        torch.sigmoid, torch.tanh, F.sigmoid, F.tanh, F.hardsigmoid, "sigmoid", "sigmoid_", "tanh",
        "tanh_", "hardsigmoid", "hardsigmoid_",
    }
)  # fmt: skip
_PASSING_MODULES = (
    nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout, nn.Identity,
    nn.Flatten, nn.ReLU,
)  # fmt: skip
_PASSING: frozenset[Any] = frozenset(
    {
        F.max_pool1d, F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.relu, torch.relu,
        torch.cat, torch.mean, "mean", F.interpolate,
    }
)  # fmt: skip


def hide_full_ranges(graph_module: fx.GraphModule) -> None:
    """Hide sigmoids and tanhs whose answers go into a product, in place; for 7-bit activations.

    Their int8 kernels fill all eight bits, and the product's 16-bit sums would overflow. Float,
    they get a scale of seven bits like anything else.
    """
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, _BOUNDED_MODULES) and _reaches_product(graph_module, node):
                graph_module.set_submodule(str(node.target), Opaque(module))
        elif node.target in _BOUNDED and _reaches_product(graph_module, node):
            hide(node)


def _reaches_product(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a product takes a node's values in at the scale that they come with."""
    for user in node.users:
        if user.op == "call_module":
            module = graph_module.get_submodule(str(user.target))
            if isinstance(module, _PRODUCT_MODULES):
                return True
            passes = isinstance(module, _PASSING_MODULES)
        else:
            if user.target in PRODUCTS:
                return True
            passes = user.target in _RESHAPING or user.target in _PASSING
        if passes and _reaches_product(graph_module, user):
            return True
    return False


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


def hide_between_floats(graph_module: fx.GraphModule, float_layers: Collection[str]) -> None:
    """Hide what is computed from the answers of layers that stay float, in place.

    It would be rounded to int8 and back for nothing; but not where int8 values join it on the way
    to an int8 layer.

    Args:
        graph_module: With its float parts hidden.
        float_layers: Dotted names.
    """
    observed = observed_targets()
    wanted = _wanted_as_int8(graph_module, float_layers)
    float_ones: set[fx.Node] = set()
    int8_ones: set[fx.Node] = set()  # what is neither says nothing: arguments, sizes, weights
    for node in graph_module.graph.nodes:
        sources = set(node.all_input_nodes)
        if node.op == "call_module" and str(node.target) in float_layers:
            float_ones.add(node)
        elif _is_product(graph_module, node) or (
            sources & int8_ones and (node in wanted or not sources & float_ones)
        ):
            int8_ones.add(node)
        elif sources & float_ones and node.target not in _SIZES:
            float_ones.add(node)
            module = _called(graph_module, node)
            if _is_fused_relu(node, module, float_layers):
                continue
            if node.target in observed:
                hide(node)
            elif module is not None and type(module) in observed and not list(module.parameters()):
                _hide_call(graph_module, node, module)


def _wanted_as_int8(graph_module: fx.GraphModule, float_layers: Collection[str]) -> set[fx.Node]:
    """Return what an int8 layer takes in, or what leads there past other than layers."""
    wanted: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        for user in node.users:
            if str(user.target) in float_layers or isinstance(_called(graph_module, user), Opaque):
                continue
            if user in wanted or _is_product(graph_module, user):
                wanted.add(node)
    return wanted


def _is_product(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    return node.target in PRODUCTS or isinstance(_called(graph_module, node), _PRODUCT_MODULES)


def _called(graph_module: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None


def _is_fused_relu(node: fx.Node, module: nn.Module | None, layers: Collection[str]) -> bool:
    """Whether a relu becomes a part of the layer before it, int8 or not."""
    source = node.all_input_nodes[0]
    is_relu = isinstance(module, nn.ReLU) or node.target in (F.relu, torch.relu, "relu")
    return is_relu and str(source.target) in layers and len(source.users) == 1


def _hide_call(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    """Hide one call of a module that may be called elsewhere, too."""
    name = f"{node.target}_{node.name}"
    graph_module.add_submodule(name, Opaque(module))
    node.target = name


def _hide_what_feeds_them(graph_module: fx.GraphModule) -> None:
    """What something float takes in gains nothing from int8, and loses to a scale that is shared.

    Such are the residual stream of a transformer, whose norms undo every scale but no rounding,
    scores with a mask, whose range leaves no bits to the scores, and the mask itself, on its way.
    """
    observed = observed_targets()
    float_ones: set[fx.Node] = set()
    for node in reversed(graph_module.graph.nodes):
        users = [user in float_ones for user in node.users if user.target not in _SIZES]
        if node.target in _SIZES:
            continue
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
