"""Full and half precision of a lifted graph: no scales, no calibration.

Half precision stores weights in 16 bits and computes in 32: the x86 kernels for half are far
slower than those for float (ResNet-18 on a processor without AVX512-FP16: 1126 ms against 29),
while widening the weights on each call costs a tenth. Arguments and outputs keep their element
types, so
the file drops in where the old one was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from compress.errors import NothingToCompress
from compress.quantize.islands import given_to
from compress.quantize.layers import STAYS, type_name, weighted_layers
from compress.quantize.static import Quantized
from compress.result import Layer

_HALF_MAX = torch.finfo(torch.float16).max
_SMALLEST_TENSOR = 64
"""Elements; below, widening costs more than is saved."""


def to_float32(graph_module: fx.GraphModule, islands: Mapping[str, str] | None = None) -> Quantized:
    """Return a copy with BatchNorm folded into the layer before it, all in float32.

    Args:
        graph_module: Left as it is.
        islands: Name to the reason why a module stays TorchScript.
    """
    model = copy.deepcopy(graph_module).eval()
    _fold_batch_norm(model)
    table = [
        Layer(
            name=name,
            type=type_name(layer.module),
            precision="fp32",
            size_bytes=(layer.size_bytes, layer.size_bytes),
            reason=(islands or {}).get(name, STAYS) if layer.is_island else None,
        )
        for name, layer in weighted_layers(model).items()
    ]
    return Quantized(model, table)


def to_half(graph_module: fx.GraphModule, islands: Mapping[str, str] | None = None) -> Quantized:
    """Return a copy whose weights are stored in float16 and widened where they are used.

    An island's own weights stay as they are; those that the graph gives it are halved.

    Raises:
        NothingToCompress: No weights, or none that fit float16.
    """
    folded = to_float32(graph_module, islands)
    model = folded.graph_module
    loose_nodes = _loose_tensors(model)
    given = {one.name: [path for path, _ in given_to(model, one.name)] for one in folded.layers}
    table = []
    for layer in folded.layers:
        if layer.reason is None:
            reason = _halve_layer(model, layer.name)
            if reason is None:
                halved = (layer.size_bytes[0], layer.size_bytes[0] // 2)
                layer = replace(layer, precision="fp16", size_bytes=halved)
            layer = replace(layer, reason=reason)
        table.append(layer)
    loose = _halve_loose_tensors(model, loose_nodes)
    table = [_with_given(layer, model, given[layer.name]) for layer in table]
    if not loose and not any(layer.precision == "fp16" for layer in table):
        reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in table[:5])
        raise NothingToCompress(
            "The model holds no weights that can be stored in float16"
            f"{f' ({reasons})' if reasons else ''}."
        )
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
    return Quantized(model, table)


def _with_given(layer: Layer, model: fx.GraphModule, paths: Sequence[str]) -> Layer:
    """Note in an island's row which of the weights that it is given are in half now."""
    before, after = layer.size_bytes
    saved = sum(value.nbytes for value in map(partial(_tensor, model), paths) if _is_half(value))
    if not saved:
        return layer
    if 2 * saved == before:
        layer = replace(layer, precision="fp16", reason=None)
    return replace(layer, size_bytes=(before, after - saved))


def _is_half(value: Tensor) -> bool:
    return value.dtype == torch.float16


def _fold_batch_norm(model: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node in model.graph.nodes:
        # a weight that is also read by itself must stay as it is
        name = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        if node.op in ("call_module", "get_attr"):
            calls[name] = calls.get(name, 0) + 1
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not node.args or not isinstance(node.args[0], fx.Node):
            continue
        before, norm = node.args[0], model.get_submodule(str(node.target))
        if before.op != "call_module" or len(before.users) > 1 or calls[str(before.target)] > 1:
            continue
        layer = model.get_submodule(str(before.target))
        fused = _fuse(layer, norm)
        if fused is not None:
            model.set_submodule(str(before.target), fused)
            node.replace_all_uses_with(before)
            model.graph.erase_node(node)
    model.delete_all_unused_submodules()
    model.recompile()


def _fuse(layer: nn.Module, norm: nn.Module) -> nn.Module | None:
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
        return None
    if isinstance(layer, nn.Linear) and isinstance(norm, nn.BatchNorm1d):
        return fuse_linear_bn_eval(layer, norm)
    pairs = ((nn.Conv1d, nn.BatchNorm1d), (nn.Conv2d, nn.BatchNorm2d), (nn.Conv3d, nn.BatchNorm3d))
    for convolution, normalisation in pairs:
        if isinstance(layer, convolution) and isinstance(norm, normalisation):
            return fuse_conv_bn_eval(layer, norm)
    return None


def _halve_layer(model: fx.GraphModule, name: str) -> str | None:
    """Rewrite the calls of one layer to read half weights; or return why that cannot be."""
    module = model.get_submodule(name)
    call = _functional(module)
    if call is None:
        return f"{type_name(module)} computes in the precision that its weights are stored in"
    weights = [p for p in module.parameters() if p is not None]
    if any(float(weight.detach().abs().max()) > _HALF_MAX for weight in weights if weight.numel()):
        return "a weight is beyond the range of float16"
    module.half()
    for node in list(model.graph.nodes):
        if node.op == "call_module" and node.target == name:
            with model.graph.inserting_before(node):
                weight = model.graph.get_attr(f"{name}.weight")
                if not isinstance(module, nn.Embedding):
                    weight = model.graph.call_method("float", (weight,))
                bias = None
                if getattr(module, "bias", None) is not None:
                    bias = model.graph.get_attr(f"{name}.bias")
                    bias = model.graph.call_method("float", (bias,))
                result = call(model.graph, node.args[0], weight, bias)
            node.replace_all_uses_with(result)
            model.graph.erase_node(node)
    return None


def _functional(module: nn.Module) -> Callable[[fx.Graph, Any, fx.Node, Any], fx.Node] | None:
    """Return what writes the layer as a function of its weights, or None."""
    if isinstance(module, nn.Linear):
        return lambda graph, x, weight, bias: graph.call_function(F.linear, (x, weight, bias))
    if isinstance(module, nn.Embedding) and module.max_norm is None:
        return lambda graph, x, weight, _: graph.call_method(
            "float", (graph.call_function(F.embedding, (x, weight)),)
        )
    if getattr(module, "padding_mode", None) != "zeros":
        return None
    plain: dict[type[nn.Module], Any] = {
        nn.Conv1d: F.conv1d, nn.Conv2d: F.conv2d, nn.Conv3d: F.conv3d,
    }  # fmt: skip
    transposed: dict[type[nn.Module], Any] = {
        nn.ConvTranspose1d: F.conv_transpose1d,
        nn.ConvTranspose2d: F.conv_transpose2d,
        nn.ConvTranspose3d: F.conv_transpose3d,
    }
    m: Any = module
    rest: tuple[Any, ...]
    if type(module) in plain:
        target, rest = plain[type(module)], (m.stride, m.padding, m.dilation, m.groups)
    elif type(module) in transposed:
        target = transposed[type(module)]
        rest = (m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    else:
        return None
    return lambda graph, x, weight, bias: graph.call_function(target, (x, weight, bias, *rest))


def _loose_tensors(model: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that read a float32 tensor by itself."""
    return [
        node
        for node in model.graph.nodes
        if node.op == "get_attr" and _tensor(model, str(node.target)).dtype == torch.float32
    ]


def _tensor(model: fx.GraphModule, path: str) -> Tensor:
    owner, _, name = path.rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value


def _halve_loose_tensors(model: fx.GraphModule, nodes: Sequence[fx.Node]) -> int:
    """Store tensors that the graph reads by themselves in half, too; return how many."""
    seen: dict[str, bool] = {}
    for node in nodes:
        path = str(node.target)
        if path not in seen:
            seen[path] = _halve_tensor(model, path)
        if seen[path]:
            users = list(node.users)
            with model.graph.inserting_after(node):
                wide = model.graph.call_method("float", (node,))
            for user in users:
                user.replace_input_with(node, wide)
    return sum(seen.values())


def _halve_tensor(model: fx.GraphModule, path: str) -> bool:
    owner_path, _, name = path.rpartition(".")
    owner = model.get_submodule(owner_path)
    value = _tensor(model, path)
    if value.dtype == torch.float16:
        return True  # with the layer that shares it
    if value.numel() < _SMALLEST_TENSOR or float(value.abs().max()) > _HALF_MAX:
        return False
    half = value.detach().half()
    if isinstance(value, nn.Parameter):
        setattr(owner, name, nn.Parameter(half, requires_grad=False))
    elif name in owner._buffers:
        owner._buffers[name] = half
    else:
        setattr(owner, name, half)
    return True
