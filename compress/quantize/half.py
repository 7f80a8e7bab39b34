"""Full and half precision of a lifted graph: no scales, no calibration.

Half precision stores weights in 16 bits and computes in 32: the x86 kernels for half are far
slower than those for float (ResNet-18 on a processor without AVX512-FP16: 1126 ms against 29),
while widening the weights on each call costs a tenth. Arguments and outputs keep their element
types, so
the file drops in where the old one was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from compress.errors import NothingToCompress
from compress.quantize.layers import type_name, weight_bytes, weighted_layers
from compress.quantize.static import Quantized
from compress.result import Layer

_HALF_MAX = torch.finfo(torch.float16).max
_SMALLEST_TENSOR = 64
"""Elements; below, widening costs more than is saved."""


def to_float32(graph_module: fx.GraphModule) -> Quantized:
    """Return a copy with BatchNorm folded into the layer before it, all in float32."""
    model = copy.deepcopy(graph_module).eval()
    _fold_batch_norm(model)
    layers = [
        Layer(
            name=name,
            type=type_name(module),
            precision="fp32",
            size_bytes=(weight_bytes(module), weight_bytes(module)),
        )
        for name, module in weighted_layers(model).items()
    ]
    return Quantized(model, layers)


def to_half(graph_module: fx.GraphModule) -> Quantized:
    """Return a copy whose weights are stored in float16 and widened where they are used.

    Raises:
        NothingToCompress: No weights, or none that fit float16.
    """
    folded = to_float32(graph_module)
    model = folded.graph_module
    loose_nodes = _loose_tensors(model)
    table = []
    for layer in folded.layers:
        reason = _halve_layer(model, layer.name)
        if reason is None:
            halved = (layer.size_bytes[0], layer.size_bytes[0] // 2)
            layer = replace(layer, precision="fp16", size_bytes=halved)
        table.append(replace(layer, reason=reason))
    loose = _halve_loose_tensors(model, loose_nodes)
    if not loose and not any(layer.precision == "fp16" for layer in table):
        raise NothingToCompress("The model holds no weights that can be stored in float16.")
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
    return Quantized(model, table)


def _fold_batch_norm(model: fx.GraphModule) -> None:
    calls: dict[str, int] = {}
    for node in model.graph.nodes:
        # a weight that is also read by itself must stay as it is
        name = str(node.target) if node.op == "call_module" else str(node.target).rpartition(".")[0]
        if node.op in ("call_module", "get_attr"):
            calls[name] = calls.get(name, 0) + 1
    for node in list(model.graph.nodes):
        if node.op != "call_module" or not isinstance(node.args[0], fx.Node):
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
        return f"{type_name(module)} widens its weights nowhere cheap"
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
