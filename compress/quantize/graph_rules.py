"""Rewrites around quantization of a graph; each keeps its outputs bit for bit."""

from __future__ import annotations

import operator
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.quantize.channels import LAYERS
from compress.quantize.fx_backend import clip_ends, observed_targets
from compress.quantize.fx_layers import output_span
from compress.quantize.hiding import PRODUCTS, hide, hide_float_parts, hide_full_ranges
from compress.quantize.islands import Opaque
from compress.spec import Backend

_VIEWS: tuple[Any, ...] = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)


def make_quantizable(
    graph_module: fx.GraphModule, backend: Backend = "x86", *, full_range: bool = False
) -> None:
    """Apply every rule to `graph_module` in place."""
    graph_module.graph.eliminate_dead_code()
    _drop_dropout(graph_module)
    _part_tied_weights(graph_module)
    _views_to_reshapes(graph_module)
    _parts_to_narrows(graph_module)
    _spell_out_padding(graph_module)
    _spell_out_activations(graph_module)
    _shield_cats(graph_module)
    if not full_range:
        hide_full_ranges(graph_module)
    hide_float_parts(graph_module)
    if backend == "arm":
        _hide_clips(graph_module)
    graph_module.graph.lint()
    graph_module.recompile()


def drop_idle_clips(converted: fx.GraphModule) -> None:
    """Take away relu6 and its like behind a layer whose int8 scale reaches no further anyway.

    That is so wherever activations span all 8 bits; their scale is that of what was clipped.
    """
    for node in list(converted.graph.nodes):
        ends = clip_ends(converted, node)
        source = node.args[0] if node.args else None
        if ends is None or not isinstance(source, fx.Node) or source.op != "call_module":
            continue
        span = output_span(converted.get_submodule(str(source.target)))
        if span is None:
            continue
        slack = 0.51 * span.step  # within half a step both round to the same
        if span.low >= ends[0] - slack and span.high <= ends[1] + slack:
            node.replace_all_uses_with(source)
            converted.graph.erase_node(node)
    converted.delete_all_unused_submodules()
    converted.recompile()


def activate_in_place(converted: fx.GraphModule) -> None:
    """Let a silu between two scales write over the copy that was made for it, in place.

    There is no int8 kernel. At 96 x 112 x 112 dequantize, silu, quantize take 1.5 ms so, 11 ms
    with a copy more, which outgrows what the allocator keeps; an int8 sigmoid and product 1.8 ms,
    and twice the error; a table of 256 entries 1.9 ms.
    """
    for node in converted.graph.nodes:
        is_module = node.op == "call_module" and isinstance(
            converted.get_submodule(str(node.target)), nn.SiLU
        )
        if not is_module and node.target is not F.silu:
            continue
        source = node.args[0] if node.args else None
        if (
            isinstance(source, fx.Node)
            and source.op == "call_method"
            and source.target == "dequantize"
            and len(source.users) == 1
        ):
            node.op, node.target = "call_function", F.silu
            node.args, node.kwargs = (source,), {"inplace": True}
    converted.delete_all_unused_submodules()
    converted.recompile()


@dataclass(frozen=True)
class Structure:
    """What a graph returned: containers and constants around nodes, and these nodes in order."""

    output: Any
    nodes: list[fx.Node]


def flatten_output(graph_module: fx.GraphModule) -> Structure:
    """Let the graph return a plain tuple of what it computes, and say what it did return.

    The quantizer forgets the names of named tuples, and does not take constants.
    """
    output = graph_module.graph.output_node()
    structure = Structure(output.args[0], output.all_input_nodes)
    output.args = (tuple(structure.nodes),)
    graph_module.recompile()
    return structure


def restore_output(graph_module: fx.GraphModule, structure: Structure) -> None:
    """Let the graph return what it did before `flatten_output`."""
    output = graph_module.graph.output_node()
    given = dict(zip(structure.nodes, cast(Sequence[fx.Node], output.args[0]), strict=True))
    output.args = (fx.map_arg(structure.output, given.__getitem__),)
    graph_module.recompile()


def last_layers(graph_module: fx.GraphModule, layers: Collection[str]) -> frozenset[str]:
    """Return those of `layers` after which, on no way to the output, another product follows."""
    return frozenset(
        str(node.target)
        for node in graph_module.graph.nodes
        if node.op == "call_module"
        and str(node.target) in layers
        and not any(_multiplies(later, layers) for later in _descendants(node))
    )


def has_bare_products(graph_module: fx.GraphModule) -> bool:
    """Whether convolutions or linears are called as functions, on weights of no layer."""
    return any(_multiplies(node, ()) for node in graph_module.graph.nodes)


def _descendants(node: fx.Node) -> set[fx.Node]:
    found: set[fx.Node] = set()
    todo = list(node.users)
    while todo:
        later = todo.pop()
        if later not in found:
            found.add(later)
            todo.extend(later.users)
    return found


def _multiplies(node: fx.Node, layers: Collection[str]) -> bool:
    if node.op == "call_module":
        return str(node.target) in layers
    target = getattr(node.target, "hides", (None, node.target))[1]
    return node.op == "call_function" and target in PRODUCTS


def _drop_dropout(graph_module: fx.GraphModule) -> None:
    """Dropout does nothing in inference, but would stand between a layer and its relu."""
    for node in list(graph_module.graph.nodes):
        if node.op == "call_module" and isinstance(
            graph_module.get_submodule(str(node.target)), nn.modules.dropout._DropoutNd
        ):
            node.replace_all_uses_with(node.args[0])
            graph_module.graph.erase_node(node)


def _hide_clips(graph_module: fx.GraphModule) -> None:
    """Keep relu6 and its like float, but behind layers, where none will be left.

    qnnpack's kernel mixes up the elements of what lies in memory channels last.
    """
    for node in graph_module.graph.nodes:
        if clip_ends(graph_module, node) is None:
            continue
        source = node.args[0]
        layer = source
        while layer.op == "call_module" and isinstance(
            graph_module.get_submodule(str(layer.target)), nn.modules.batchnorm._BatchNorm
        ):
            layer = layer.args[0]
        behind_layer = layer.op == "call_module" and isinstance(
            graph_module.get_submodule(str(layer.target)), LAYERS
        )
        if behind_layer and len(source.users) == 1 and len(layer.users) == 1:
            continue
        if node.op == "call_module":
            held = graph_module.get_submodule(str(node.target))
            graph_module.set_submodule(str(node.target), Opaque(held))
        else:
            hide(node)


def _part_tied_weights(graph_module: fx.GraphModule) -> None:
    """A layer's weight that the graph also reads by itself gets a name outside of the layer.

    The layer's own becomes int8, and moves into a fused module.
    """
    called = {str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"}
    for node in graph_module.graph.nodes:
        path = str(node.target)
        owner, _, leaf = path.rpartition(".")
        if node.op != "get_attr" or owner not in called:
            continue
        value = getattr(graph_module.get_submodule(owner), leaf)
        name = f"tied_{path.replace('.', '_')}"
        while hasattr(graph_module, name) and getattr(graph_module, name) is not value:
            name += "_"
        if isinstance(value, nn.Parameter):
            graph_module.register_parameter(name, value)
        else:
            graph_module.register_buffer(name, value)
        node.target = name


def _views_to_reshapes(graph_module: fx.GraphModule) -> None:
    """int8 convolutions return channels-last tensors, of which `view` refuses to be taken."""
    for node in graph_module.graph.nodes:
        is_method = node.op == "call_method" and node.target == "view"
        is_operator = node.op == "call_function" and node.target in _VIEWS
        if (is_method or is_operator) and not any(
            isinstance(arg, torch.dtype) for arg in [*node.args, *node.kwargs.values()]
        ):
            shape = node.args[1:] or tuple(node.kwargs.values())
            node.op, node.target = "call_method", "reshape"
            node.args, node.kwargs = (node.args[0], *shape), {}


def _parts_to_narrows(graph_module: fx.GraphModule) -> None:
    """Halves and parts of given lengths are cut out one by one: so they can be cut of int8 values.

    The quantizer knows no tuples.
    """
    graph = graph_module.graph
    for node in list(graph.nodes):
        users = list(node.users)
        if node.target not in (torch.chunk, torch.split) or len(node.args) < 2 or not users:
            continue
        indices = [user.args[1] if user.target is getitem else None for user in users]
        axis = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        source, sizes = node.args[:2]
        halves = node.target is torch.chunk and sizes == 2
        listed = node.target is torch.split and isinstance(sizes, list | tuple)
        count = 2 if halves else len(cast(Sequence[Any], sizes)) if listed else 0
        if not all(isinstance(index, int) and 0 <= index < count for index in indices):
            continue
        starts: list[Any] = [0]
        lengths: list[Any] = list(cast(Sequence[Any], sizes)) if listed else []
        with graph.inserting_before(node):
            if halves:
                whole = graph.call_method("size", (source, axis))
                more = graph.call_function(operator.add, (whole, 1))
                half = graph.call_function(operator.floordiv, (more, 2))
                lengths = [half, graph.call_function(operator.sub, (whole, half))]
                starts = [0, half]
            elif all(isinstance(length, int) for length in lengths):
                starts = [sum(lengths[:index]) for index in range(count)]
            else:
                continue
            for user, index in zip(users, cast(list[int], indices), strict=True):
                part = graph.call_function(
                    torch.narrow, (source, axis, starts[index], lengths[index])
                )
                user.replace_all_uses_with(part)
                graph.erase_node(user)
        graph.erase_node(node)


def _spell_out_padding(graph_module: fx.GraphModule) -> None:
    """The int8 convolutions take numbers, not 'same' and 'valid'."""
    for module in graph_module.modules():
        if not isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            continue
        if module.padding == "valid":
            module.padding = (0,) * len(module.kernel_size)
        elif module.padding == "same":
            both = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
            if all(total % 2 == 0 for total in both):
                module.padding = tuple(total // 2 for total in both)


def _spell_out_activations(graph_module: fx.GraphModule) -> None:
    """The int8 kernels take their arguments in another order, and know no defaults."""
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or node.target not in (F.leaky_relu, F.elu):
            continue
        x, *rest = node.args
        names = ("negative_slope" if node.target is F.leaky_relu else "alpha", "inplace")
        given = dict(zip(names, rest, strict=False)) | dict(node.kwargs)
        if given.get("inplace"):
            hide(node)
        elif node.target is F.leaky_relu:
            node.args, node.kwargs = (x, given.get("negative_slope", 0.01), False), {}
        else:
            node.args, node.kwargs = (x,), {"alpha": given.get("alpha", 1.0)}


def _shield_cats(graph_module: fx.GraphModule) -> None:
    """Joining with a made tensor stays float: the quantizer looks for its observer and fails."""
    observed = observed_targets()

    def is_made(source: Any) -> bool:
        while isinstance(source, fx.Node):
            calls = source.op in ("call_function", "call_method")
            if not calls or source.target in observed or not source.args:
                return False
            source = source.args[0]
        return True

    for node in graph_module.graph.nodes:
        if node.target is not torch.cat:
            continue
        sources = node.args[0] if node.args else node.kwargs["tensors"]
        if isinstance(sources, fx.Node) or any(is_made(source) for source in sources):
            node.target = torch.ops.aten.cat
