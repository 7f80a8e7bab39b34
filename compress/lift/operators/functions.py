"""Operators that become Python callables, chosen as quantization patterns spell them."""

from __future__ import annotations

import operator
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Parts, Symbol, Value, concrete, symbols_in

# Same argument order as the TorchScript operator, so nothing else is to be said of them.
FUNCTIONS: dict[str, Callable[..., Any]] = {
    # activations
    "aten::relu": F.relu,
    "aten::relu6": F.relu6,
    "aten::hardtanh": F.hardtanh,
    "aten::leaky_relu": F.leaky_relu,
    "aten::gelu": F.gelu,
    "aten::silu": F.silu,
    "aten::mish": F.mish,
    "aten::selu": F.selu,
    "aten::celu": F.celu,
    "aten::hardswish": F.hardswish,
    "aten::hardsigmoid": F.hardsigmoid,
    "aten::softplus": F.softplus,
    "aten::sigmoid": torch.sigmoid,
    "aten::tanh": torch.tanh,
    "aten::softmax": torch.softmax,
    "aten::log_softmax": torch.log_softmax,
    "aten::log_sigmoid": F.logsigmoid,
    "aten::prelu": F.prelu,
    # pooling
    "aten::max_pool1d": torch.max_pool1d,
    "aten::max_pool3d": torch.max_pool3d,
    "aten::avg_pool1d": F.avg_pool1d,
    "aten::avg_pool2d": F.avg_pool2d,
    "aten::avg_pool3d": F.avg_pool3d,
    "aten::adaptive_avg_pool1d": F.adaptive_avg_pool1d,
    "aten::adaptive_avg_pool2d": F.adaptive_avg_pool2d,
    "aten::adaptive_avg_pool3d": F.adaptive_avg_pool3d,
    # arithmetic
    "aten::add": torch.add,
    "aten::sub": torch.sub,
    "aten::mul": torch.mul,
    "aten::div": torch.div,
    "aten::rsub": torch.rsub,
    "aten::neg": torch.neg,
    "aten::pow": torch.pow,
    "aten::sqrt": torch.sqrt,
    "aten::rsqrt": torch.rsqrt,
    "aten::exp": torch.exp,
    "aten::log": torch.log,
    "aten::abs": torch.abs,
    "aten::clamp": torch.clamp,
    "aten::where": torch.where,
    "aten::matmul": torch.matmul,
    "aten::bmm": torch.bmm,
    "aten::mean": torch.mean,
    "aten::sum": torch.sum,
    "aten::amax": torch.amax,
    "aten::linalg_vector_norm": torch.linalg.vector_norm,
    # shapes
    "aten::cat": torch.cat,
    "aten::stack": torch.stack,
    "aten::flatten": torch.flatten,
    "aten::transpose": torch.transpose,
    "aten::permute": torch.permute,
    "aten::unsqueeze": torch.unsqueeze,
    "aten::squeeze": torch.squeeze,
    "aten::chunk": torch.chunk,
    "aten::select": torch.select,
    "aten::roll": torch.roll,
    "aten::flip": torch.flip,
    "aten::pixel_shuffle": F.pixel_shuffle,
    "aten::pixel_unshuffle": F.pixel_unshuffle,
    "aten::channel_shuffle": F.channel_shuffle,
    "aten::pad": F.pad,
    "aten::scaled_dot_product_attention": F.scaled_dot_product_attention,
}

# Method calls, where those are what patterns know, or what scripts without overload trouble.
METHODS: dict[str, str] = {
    "aten::view": "reshape",  # after quantization the memory may lie otherwise
    "aten::reshape": "reshape",
    "aten::contiguous": "contiguous",
    "aten::expand": "expand",
    "aten::expand_as": "expand_as",
    "aten::repeat": "repeat",
    "aten::detach": "detach",
    "aten::t": "t",
}

# Operands of these may be numbers where the schema says tensor.
_ELEMENTWISE = frozenset({"aten::add", "aten::sub", "aten::mul", "aten::div", "aten::pow"})


def lift_function(builder: GraphBuilder, call: Call) -> Value:
    """Lifts a call by the tables above; `NotImplemented` when they do not hold it."""
    if call.name in METHODS:
        first, *rest = call.values
        if not isinstance(first, Symbol):
            return NotImplemented
        if len(rest) == 1 and isinstance(rest[0], list):
            return builder.call_method(METHODS[call.name], first, *rest)
        positional, keywords = call.split()
        return builder.call_method(METHODS[call.name], *positional, **keywords)
    function = FUNCTIONS.get(call.name)
    if function is None:
        return NotImplemented
    positional, keywords = call.split()
    if call.name in _ELEMENTWISE:
        positional = _scalars(positional)
    if not any(isinstance(value, Symbol) and value.is_tensor for value in _flat(positional)):
        return NotImplemented
    return builder.call(function, *positional, **keywords)


def _flat(values: list[Value]) -> list[Value]:
    return [item for value in values for item in (value if isinstance(value, list) else [value])]


def _scalars(operands: list[Value]) -> list[Value]:
    """0-dimensional constants, as traces hold numbers, become numbers beside a float tensor."""
    floats = any(
        isinstance(operand, Symbol)
        and isinstance(operand.value, Tensor)
        and operand.value.is_floating_point()
        and not operand.is_constant
        for operand in operands
    )

    def shrink(operand: Value) -> Value:
        if isinstance(operand, Symbol) and operand.is_constant and operand.is_tensor:
            tensor = operand.value
            assert isinstance(tensor, Tensor)
            if tensor.dim() == 0 and not tensor.is_complex():
                return tensor.item()
        return operand

    return [shrink(operand) for operand in operands] if floats else operands


@rule("aten::elu")
def _elu(builder: GraphBuilder, call: Call) -> Value:
    if call["scale"] != 1 or call["input_scale"] != 1:
        return NotImplemented
    return builder.call(F.elu, call["self"], call["alpha"])


@rule("aten::max_pool2d")
def _max_pool(builder: GraphBuilder, call: Call) -> Value:
    return builder.call(
        F.max_pool2d, call["self"], call["kernel_size"], call["stride"] or None,
        call["padding"], call["dilation"], call["ceil_mode"],
    )  # fmt: skip


@rule("aten::dropout", "aten::feature_dropout")
def _dropout(builder: GraphBuilder, call: Call) -> Value:
    """Comes back as a module, so that it drops again in train mode."""
    owner = call.owner
    kind = torch.nn.Dropout if call.name == "aten::dropout" else torch.nn.Dropout2d
    is_module = "dropout" in owner.module.original_name.lower() and owner.path
    path = owner.path if is_module else builder.fresh_name("dropout")
    if path not in builder.modules:
        builder.modules[path] = kind(builder.fixed(call["p"])).train(bool(call["train"]))
    return builder.call_module(path, call.values[0])  # `dropout_` names it otherwise


@rule("aten::slice")
def _slice(builder: GraphBuilder, call: Call) -> Value:
    tensor = call["self"]
    start, end, step = (call.get(name) for name in ("start", "end", "step"))
    if not isinstance(tensor, Symbol):
        return NotImplemented
    end = None if isinstance(end, int) and end >= 2**62 else end
    start = None if start == 0 else start
    step = None if step == 1 else step
    if (start, end, step) == (None, None, None):
        return tensor
    dim = call["dim"] % tensor.value.dim()  # type: ignore[union-attr]
    index = (*(slice(None),) * dim, slice(start, end, step))
    return builder.call(operator.getitem, tensor, index)


@rule("aten::split", "aten::split_with_sizes")
def _split(builder: GraphBuilder, call: Call) -> Value:
    tensor, sizes, dim = call.values
    parts = builder.call(torch.split, tensor, sizes, dim)
    if isinstance(sizes, list):
        return parts
    length = builder.call(operator.add, builder.size(tensor, builder.fixed(dim)), sizes)
    count = builder.call(operator.floordiv, builder.call(operator.sub, length, 1), sizes)
    return _as_parts(parts, count)


@rule("aten::unbind")
def _unbind(builder: GraphBuilder, call: Call) -> Value:
    tensor, dim = call.values
    parts = builder.call(torch.unbind, tensor, dim)
    return _as_parts(parts, builder.size(tensor, builder.fixed(dim)))


def _as_parts(parts: Value, count: Value) -> Value:
    """Parts whose number the input decides; a plain list where it does not."""
    if not isinstance(count, Symbol) or not parts:
        return parts
    node = parts[0].node.args[0]
    whole = Symbol([part.value for part in parts], node, from_data=True)
    return Parts(parts, whole, count)


@rule("aten::unsafe_chunk", "aten::unsafe_split", "aten::unsafe_split_with_sizes")
def _unsafe_split(builder: GraphBuilder, call: Call) -> Value:
    """Parts that the original promises to use as if they shared no memory."""
    function = torch.chunk if call.name == "aten::unsafe_chunk" else torch.split
    parts = builder.call(function, *call.values)
    for part in parts:
        part.aliases = weakref.WeakSet([part])
    return parts


@rule("aten::tensor", "aten::as_tensor")
def _tensor_of(builder: GraphBuilder, call: Call) -> Value:
    """A tensor made of numbers, which may be sizes."""
    data, dtype = call.values[0], call.get("dtype")
    if isinstance(data, Symbol) and data.is_tensor:
        return data if dtype is None else builder.call_method("to", data, dtype)
    if dtype is None:
        dtype = torch.tensor(concrete(data)).dtype  # as of numbers, whatever makes them later
    return (
        _stacked(builder, data, dtype)
        if symbols_in(data)
        else Symbol(torch.tensor(data, dtype=dtype))
    )


def _stacked(builder: GraphBuilder, data: Value, dtype: torch.dtype) -> Value:
    if isinstance(data, list):
        return builder.call(torch.stack, [_stacked(builder, item, dtype) for item in data])
    return builder.call(torch.scalar_tensor, data, dtype=dtype)


@rule("aten::einsum")
def _einsum(builder: GraphBuilder, call: Call) -> Value:
    return builder.call(torch.einsum, call["equation"], *call["tensors"])


@rule("aten::to", "aten::type_as", "aten::float", "aten::_autocast_to_reduced_precision",
      "aten::_autocast_to_full_precision", "aten::cpu", "aten::cuda")  # fmt: skip
def _to(builder: GraphBuilder, call: Call) -> Value:
    """Only the element type counts: the device is chosen when the artifact runs."""
    tensor = call.values[0]
    assert isinstance(tensor, Symbol)
    assert isinstance(tensor.value, Tensor)
    dtype = call.get("dtype")
    other = call.get("other")
    if isinstance(other, Symbol):
        dtype = other.value.dtype  # type: ignore[union-attr]
    if call.name == "aten::float":
        dtype = torch.float32
    if dtype is None or dtype == tensor.value.dtype:
        return builder.call_method("clone", tensor) if call.get("copy") else tensor
    return builder.call_method("to", tensor, dtype)


@rule("aten::alias", "aten::lift_fresh", "aten::lift", "aten::requires_grad", "aten::identity")
def _same(builder: GraphBuilder, call: Call) -> Value:
    return call.values[0]


@rule("aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_nearest3d",
      "aten::upsample_linear1d", "aten::upsample_bilinear2d", "aten::upsample_bicubic2d",
      "aten::upsample_trilinear3d")  # fmt: skip
def _interpolate(builder: GraphBuilder, call: Call) -> Value:
    if call.overload != "vec":
        # the plain overload takes size and scale together, which F.interpolate cannot say
        scales = [value for name, value in call.arguments.items() if name.startswith("scale")]
        if any(scale is not None for scale in scales):
            return NotImplemented
    mode = call.name.removeprefix("aten::upsample_").rstrip("123d")
    keywords: dict[str, Value] = {"mode": mode}
    size, scales = call.get("output_size"), call.get("scale_factors")
    keywords |= {"size": size} if size is not None else {"scale_factor": scales}
    if mode != "nearest":
        keywords["align_corners"] = call["align_corners"]
    return builder.call(F.interpolate, call.values[0], **keywords)
