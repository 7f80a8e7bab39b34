"""A quantized graph as plain operators: what the int8 file is written from.

The modules that conversion leaves behind carry state machines of their own for saving; each would
become a class with code in the file. Here they shrink to one operator call with packed weights.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.lift import is_loop
from compress.quantize.fx_backend import packed_call


def flatten(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a graph of the same outputs that TorchScript compiles to little code.

    Quantized layers become operator calls, scales and zero points become literals, and names of
    overloads give way to the operators that TorchScript resolves by itself.
    """
    root = nn.Module()
    graph = fx.Graph()
    copied: dict[fx.Node, Any] = {}
    packed_names: dict[str, str] = {}
    for node in graph_module.graph.nodes:
        args, kwargs = fx.map_arg((node.args, node.kwargs), copied.__getitem__)
        if node.op == "call_module":
            copied[node] = _call(graph, root, graph_module, node, args, kwargs, packed_names)
        elif node.op == "get_attr":
            value = _attribute(graph_module, str(node.target))
            copied[node] = _literal(node, value)
            if copied[node] is None:
                place(root, str(node.target), value)
                copied[node] = graph.get_attr(str(node.target))
        elif node.op == "output":
            graph.output(args[0])
        else:
            target = node.target
            if isinstance(target, torch._ops.OpOverload):
                target = target.overloadpacket
            args, kwargs = _finite((args, kwargs), graph)
            # others are an example's; texts are annotations that nobody has evaluated
            known = node.op == "placeholder" and not isinstance(node.type, str)
            kind = node.type if known else None
            copied[node] = graph.create_node(node.op, target, args, kwargs, node.name, kind)
    return fx.GraphModule(root, graph)


def _call(
    graph: fx.Graph,
    root: nn.Module,
    graph_module: fx.GraphModule,
    node: fx.Node,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    packed_names: dict[str, str],
) -> fx.Node:
    name = str(node.target)
    module = graph_module.get_submodule(name)
    call = packed_call(module)
    if call is None:
        place(root, name, module.with_body(flatten(module.body)) if is_loop(module) else module)
        return graph.call_module(name, args, kwargs)
    if name not in packed_names:
        packed_names[name] = f"packed_{len(packed_names)}"
        setattr(root, packed_names[name], call.packed)
    packed = graph.get_attr(packed_names[name])
    return graph.call_function(call.operator, (args[0], packed, call.scale, call.zero_point))


def _literal(node: fx.Node, value: Any) -> float | int | None:
    """Return the number of a scale or zero point that only quantization operators read."""
    quantizing = all(
        (
            user.target is torch.quantize_per_tensor
            or str(getattr(user.target, "__module__", "")).startswith("torch._ops.quantized")
            or "quantized" in str(user.target)
        )
        and user.args[0] is not node  # a weight of one element that is itself quantized
        for user in node.users
    )
    if quantizing and isinstance(value, Tensor) and value.numel() == 1:
        return value.item()
    return None


def _finite(value: Any, graph: fx.Graph) -> Any:
    """Write infinities and NaN so that TorchScript reads them: it knows no global `inf`."""

    def spell(item: Any) -> Any:
        if isinstance(item, float) and not math.isfinite(item):
            return graph.call_function(float, (str(item),))
        return item

    return fx.node.map_aggregate(value, spell)


def _attribute(module: nn.Module, path: str) -> Any:
    owner, _, name = path.rpartition(".")
    return getattr(module.get_submodule(owner), name)


def place(root: nn.Module, path: str, value: Any) -> None:
    """Set a module, parameter or buffer at a dotted path, keeping what it is."""
    owner: nn.Module = root
    *scopes, name = path.split(".")
    for scope in scopes:
        if scope not in owner._modules:
            owner.add_module(scope, nn.Module())
        owner = owner.get_submodule(scope)
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if name not in owner._buffers:
            owner.register_buffer(name, value)
    else:
        setattr(owner, name, value)
