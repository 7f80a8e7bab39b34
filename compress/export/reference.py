"""An int8 graph as a float one that says where values are rounded, and to which scale.

What torch's quantized operators compute in integers, the reference computes in float on values of
the very same scales and zero points, so other runtimes can do it with integers of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import ExportFailed
from compress.export.flatten import place
from compress.export.packed import Unpacked, unpack
from compress.export.qdq import RANGES, Dialect, clamped_sixth, made, pool
from compress.export.recurrent import is_plain, run_layers, weights_of_layers
from compress.export.rounded import (
    computes_in_float,
    is_read_as_float,
    keeps_scale,
    quantized_name,
)
from compress.export.scales import Recorder, Scale
from compress.export.stored import is_stored, portable
from compress.lift.guards import expect_tensor, is_check
from compress.quantize.fx_backend import packed_call

# operator of torch.ops.quantized to what it computes in float, of as many first arguments
_FLOAT: dict[str, tuple[Callable[..., Any], int]] = {
    "add": (torch.add, 2),
    "add_relu": (torch.add, 2),
    "mul": (torch.mul, 2),
    "mul_relu": (torch.mul, 2),
    "matmul": (torch.matmul, 2),
    "cat": (torch.cat, 1),
    "cat_relu": (torch.cat, 1),
    "hardswish": (F.hardswish, 1),
    "leaky_relu": (F.leaky_relu, 2),
    "elu": (F.elu, 1),
    "celu": (F.celu, 1),
    "sigmoid": (torch.sigmoid, 1),
}

_ADAPTIVE = (
    F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, torch.adaptive_avg_pool1d,
)  # fmt: skip
_SPELT = (F.silu, "hardswish")


_OWN = "reference_"
"""Begins names that the original never takes: lifting numbers its own constants, too."""


def to_reference(
    graph_module: fx.GraphModule, probe: Sequence[Any], dialect: Dialect
) -> fx.GraphModule:
    """Return a float graph of the same outputs, but for rounding, as the int8 graph.

    A graph without int8 comes back as it is, but for checks of sizes, which no format holds.

    Args:
        graph_module: As `compress.quantize` returns it; left as it is.
        probe: Inputs, on which it runs once.
        dialect: How quantization is spelt.

    Raises:
        ExportFailed: It holds what has no counterpart in float.
    """
    recorder = Recorder(graph_module)
    with torch.no_grad():
        recorder.run(*probe)
    writer = _Writer(graph_module, recorder, dialect)
    for node in graph_module.graph.nodes:
        writer.write(node)
    return writer.finish()


class _Writer:
    """Writes the reference graph, node by node."""

    def __init__(self, graph_module: fx.GraphModule, recorder: Recorder, dialect: Dialect) -> None:
        self._source = graph_module
        self._scales = recorder.scales
        self._axes = recorder.axes
        self._dialect = dialect
        self._root = nn.Module()
        self._graph = fx.Graph()
        self._written: dict[fx.Node, Any] = {}
        self._constants = 0

    def finish(self) -> fx.GraphModule:
        """Return the graph, without what nothing uses."""
        model = fx.GraphModule(self._root, self._graph)
        model.graph.eliminate_dead_code()
        model.delete_all_unused_submodules()
        model.recompile()
        return model.eval()

    def write(self, node: fx.Node) -> None:
        """Write the counterpart of a node."""
        args, kwargs = fx.map_arg((node.args, node.kwargs), self._written.__getitem__)
        if node.op == "output":
            self._graph.output(args[0])
            return
        if node.op == "get_attr":
            self._written[node] = self._attribute(str(node.target))
            return
        if node.op == "call_function" and is_check(node.target):
            self._written[node] = None
            return
        if node.target is expect_tensor or (node.op, node.target) == ("call_method", "dequantize"):
            self._written[node] = args[0]
            return
        result = self._compute(node, args, kwargs)
        scale = self._scales.get(node)
        if scale is not None and not keeps_scale(node, self._scales, self._dialect):
            result = self._rounded(result, scale, node)
        self._written[node] = result

    def _compute(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if node.op == "call_module":
            return self._module(node, args, kwargs)
        if node.target is torch.quantize_per_tensor:
            return args[0]
        if node.target is torch.ops.aten._pack_padded_sequence.default:
            raise ExportFailed(
                "The model packs sequences by their lengths, which only TorchScript files hold. "
                "Ask for format 'torchscript'."
            )
        name = quantized_name(node.target)
        if self._dialect.is_fused and self._pools_all(node):
            return self._pooled(node, args[0])
        if self._dialect.spells_activations and (name or node.target) in _SPELT:
            spelt = self._spelt(node, name or node.target, args[0])
            if spelt is not None:
                return spelt
        if name is None:
            kind = node.type if not isinstance(node.type, str) else None
            return self._graph.create_node(node.op, node.target, args, kwargs, node.name, kind)
        if name in _FLOAT:
            function, count = _FLOAT[name]
            result = self._call(function, *args[:count])
            return self._rectified(node, name, result)
        if isinstance(args[1], torch.ScriptObject):
            return self._product(node, name, args[0], args[1])
        raise ExportFailed(
            f"quantized::{name} has no counterpart in float; keep the layers around it fp32 with "
            "`overrides`, or ask for TorchScript."
        )

    def _pools_all(self, node: fx.Node) -> bool:
        """Whether a node takes the mean over all axes but the first two."""
        axes = self._axes.get(node.all_input_nodes[0], 0) if node.all_input_nodes else 0
        if node.target in _ADAPTIVE:
            sizes = node.args[1]
            return axes > 2 and set(sizes if isinstance(sizes, list | tuple) else [sizes]) == {1}
        if node.target not in (torch.mean, "mean") or len(node.args) < 2 or axes < 3:
            return False
        given: Any = node.args[1]
        if not isinstance(given, list | tuple) or not all(isinstance(each, int) for each in given):
            return False
        return sorted(each % axes for each in given) == list(range(2, axes))

    def _pooled(self, node: fx.Node, x: Any) -> fx.Node:
        y = self._call(pool, x)
        if self._axes[node] > 2:
            return y
        if node in self._scales:
            y = self._rounded(y, self._scales[node], node)
        return self._call(torch.flatten, y, 1)

    def _spelt(self, node: fx.Node, name: Any, x: Any) -> Any:
        """Write an activation in operators with integer kernels, where all around is int8.

        Gates lie between 0 and 1, or are clamped there by what eight bits hold.
        """
        around = [node] if node in self._scales else list(node.users)
        rounds = all(user in self._scales for user in around)
        if not rounds or not isinstance(x, fx.Node) or x.target is not self._dialect.round_to:
            return None
        if name is F.silu:
            sigmoid = self._call(torch.sigmoid, x)
            gate = self._call(self._dialect.round_to, sigmoid, 1 / 256, 0, torch.uint8)
        else:  # hardswish: relu6(x + 3) / 6, read back at a sixth of its scale
            three = self._call(made, self._constant(torch.tensor(1, dtype=torch.uint8)), 3.0)
            shifted = self._call(torch.add, x, three)
            gate = self._call(clamped_sixth, shifted)
        return self._call(torch.mul, x, gate)

    def _module(self, node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        name = str(node.target)
        module: Any = self._source.get_submodule(name)
        call = packed_call(module)
        if call is not None:
            return self._product(node, quantized_name(call.operator) or "", args[0], call.packed)
        if node in self._scales and hasattr(module, "running_mean"):
            return self._batch_norm(node, module, args[0])
        if is_stored(module):
            place(self._root, name, portable(module, self._dialect))
            return self._graph.call_module(name, args, kwargs)
        if hasattr(module, "_packed_params"):
            return self._padded(node, module, args[0])
        if self._dialect.is_fused and is_plain(module) and self._axes[node.all_input_nodes[0]] == 3:
            return self._recurrent(module, *args)
        if self._dialect.is_fused and isinstance(module, nn.RNNBase) and module.proj_size:
            raise ExportFailed(
                f"'{name}' is an LSTM with a projection, for which ONNX has no operator. Ask for "
                "format 'torchscript'."
            )
        place(self._root, name, module)
        return self._graph.call_module(name, args, kwargs)

    def _recurrent(self, module: nn.RNNBase, x: Any, state: Any = None) -> Any:
        layers = [
            tuple(self._constant(each) for each in weights) for weights in weights_of_layers(module)
        ]
        directions = 1 + int(module.bidirectional)
        settings = (module.mode, module.hidden_size, directions, module.batch_first)
        return self._call(run_layers, x, state, layers, *settings)

    def _padded(self, node: fx.Node, module: Any, x: Any) -> Any:
        """A convolution that pads with other things than zeros."""
        around = list(module._reversed_padding_repeated_twice)
        x = self._graph.call_function(F.pad, (x, around, module.padding_mode))
        return self._product(
            node, f"conv{len(around) // 2}d", x, module._packed_params, padded=True
        )

    def _batch_norm(self, node: fx.Node, module: Any, x: Any) -> Any:
        values = (module.running_mean, module.running_var, module.weight, module.bias)
        constants = [self._constant(value.detach()) for value in values]
        result = self._graph.call_function(
            F.batch_norm, (x, *constants, False, 0.0, float(module.eps))
        )
        return self._rectified(node, type(module).__name__.lower(), result)

    def _product(
        self, node: fx.Node, name: str, x: Any, packed: Any, *, padded: bool = False
    ) -> Any:
        layer = unpack(name, packed, is_padded=padded)
        bias = layer.bias
        wide = self._weight(layer)
        if name.startswith("linear"):  # its kernels look for a float bias
            shift = None if bias is None else self._constant(bias)
            return self._rectified(node, name, self._linear(node, x, wide, shift))
        source = self._scales[node.args[0]].scale  # type: ignore[index]
        shift = None if bias is None else self._bias(bias, layer, source)
        result = self._call(layer.function, x, wide, shift, *layer.settings)
        return self._rectified(node, name, result)

    def _linear(self, node: fx.Node, x: Any, weight: Any, bias: Any) -> Any:
        axes = self._axes[node]
        if axes == 2 or not self._dialect.is_fused:
            return self._call(F.linear, x, weight, bias)
        # the only integer kernel with a bias has two axes
        sizes = [self._graph.call_method("size", (x, axis)) for axis in range(axes - 1)]
        flat = (
            self._call(torch.flatten, x, 0, -2) if axes > 2 else self._call(torch.unsqueeze, x, 0)
        )
        y = self._rounded(self._call(F.linear, flat, weight, bias), self._scales[node], node)
        return self._graph.call_method("reshape", (y, *sizes, -1))

    def _weight(self, layer: Unpacked) -> fx.Node:
        # ONNX Runtime looks for zero points
        is_needed = self._dialect.is_fused or bool(layer.zero_point.any())
        zeros = self._constant(layer.zero_point.to(torch.int8)) if is_needed else None
        integers, scale = self._constant(layer.integers), self._constant(layer.scale)
        return self._call(self._dialect.widen, integers, scale, zeros, layer.axis)

    def _bias(self, bias: Tensor, layer: Unpacked, source: float) -> fx.Node:
        scale = layer.scale * source
        integers = torch.round(bias.double() / scale.double())
        limit = torch.iinfo(torch.int32).max
        if not self._dialect.is_fused or bool((integers.abs() > limit).any()):
            return self._constant(bias)
        whole = self._constant(integers.to(torch.int32))
        return self._call(self._dialect.widen, whole, self._constant(scale), None, 0)

    def _rectified(self, node: fx.Node, name: str, result: Any) -> Any:
        """Apply the relu that an operator ends with, unless saturation at zero does."""
        if "relu" not in name or "leaky" in name or self._scales[node].zero_point == 0:
            return result
        return self._call(torch.relu, result)

    def _rounded(self, x: Any, scale: Scale, node: fx.Node) -> Any:
        """Round what a node gives; where that is idle, hold it to the range: that may be a relu."""
        if not is_read_as_float(node, self._dialect):
            return self._call(self._dialect.round_to, x, scale.scale, scale.zero_point, scale.dtype)
        if computes_in_float(node):
            return x  # no relu is left to the range behind these
        low, high = ((end - scale.zero_point) * scale.scale for end in RANGES[scale.dtype])
        return self._call(torch.clamp, x, low, high)

    def _call(self, function: Callable[..., Any], *args: Any) -> fx.Node:
        return self._graph.call_function(function, args)

    def _constant(self, value: Tensor) -> fx.Node:
        name = f"{_OWN}{self._constants}"
        self._constants += 1
        self._root.register_buffer(name, value.contiguous())
        return self._graph.get_attr(name)

    def _attribute(self, path: str) -> Any:
        owner, _, name = path.rpartition(".")
        value = getattr(self._source.get_submodule(owner), name)
        if not isinstance(value, Tensor):
            return value  # packed weights
        place(self._root, path, value)
        return self._graph.get_attr(path)
