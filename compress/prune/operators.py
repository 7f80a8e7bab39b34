"""How channel numbers go through functions: a table of what each does to channels.

A function that is not known here holds the channels that it is given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from compress.prune.calls import Call, channel_vector, merge, nobody, unknown
from compress.prune.classes import compact
from compress.prune.moving import move
from compress.prune.products import addmm, attention, linear, matmul
from compress.structure import map_tensors, tensors_in

Rule = Callable[[Call], Any]
"""From a call to the numbers of what it returns."""

ELEMENTWISE = frozenset(
    {
        "relu", "relu_", "relu6", "hardtanh", "leaky_relu", "gelu", "silu", "mish", "selu",
        "celu", "elu", "hardswish", "hardsigmoid", "softplus", "softsign", "sigmoid", "tanh",
        "logsigmoid", "log_sigmoid", "hardshrink", "softshrink", "tanhshrink", "threshold",
        "erf", "sin", "cos", "add", "sub", "mul", "div", "truediv", "rsub", "neg", "pow",
        "sqrt", "rsqrt", "exp", "expm1", "log", "log1p", "abs", "sign", "square", "reciprocal",
        "clamp", "clamp_min", "clamp_max", "clip", "where", "masked_fill", "maximum",
        "minimum", "floor", "ceil", "round", "addcmul", "addcdiv", "lerp", "eq", "ne", "lt",
        "le", "gt", "ge", "logical_not", "logical_and", "logical_or", "and_", "or_", "__and__",
        "__or__", "bitwise_not", "isnan", "isinf", "nan_to_num", "to", "type_as", "float",
        "detach", "contiguous", "clone", "alias", "dropout", "zeros_like", "ones_like",
        "full_like", "empty_like", "rand_like", "randn_like", "expect_tensor",
    }
)  # fmt: skip
_MOVES = frozenset(
    {
        "reshape", "view", "view_as", "reshape_as", "flatten", "unflatten", "transpose",
        "permute", "swapaxes", "movedim", "t", "numpy_T", "unsqueeze", "squeeze", "select",
        "narrow", "slice", "chunk", "split", "split_with_sizes", "unbind", "flip", "expand",
        "expand_as", "repeat", "tile", "cat", "concat", "stack", "roll", "index_select",
        "index", "getitem", "pixel_shuffle", "pixel_unshuffle",
    }
)  # fmt: skip
_FACTORIES = frozenset({"new_zeros", "new_ones", "new_full", "new_empty"})
_REDUCTIONS = frozenset(
    {
        "mean", "sum", "amax", "amin", "max", "min", "std", "var", "prod", "logsumexp", "any",
        "all",
    }
)  # fmt: skip
_ALONG = frozenset({"softmax", "log_softmax", "cumsum", "cumprod"})
_LOCAL = {
    f"{kind}{rank}d": rank
    for kind in ("max_pool", "avg_pool", "lp_pool", "adaptive_avg_pool", "adaptive_max_pool",
                 "upsample_nearest", "upsample_linear", "upsample_bilinear", "upsample_bicubic",
                 "upsample_trilinear", "_upsample_nearest_exact")
    for rank in (1, 2, 3)
}  # fmt: skip
"""What mixes only the last so many axes."""


def after(call: Call) -> Any:
    """Return the numbers of what a call returns, in the structure of that."""
    if not tensors_in(call.value):
        return call.value
    if not any(compact(each).any() for each in call.operands) or call.name in _FACTORIES:
        return nobody(call)
    found = _rule(call.name)(call)
    shapes = [each.shape for each in tensors_in(found)]
    if shapes != [each.shape for each in tensors_in(call.value)]:
        return unknown(call)
    return found


def _rule(name: str) -> Rule:
    if name in _RULES:
        return _RULES[name]
    if name in ELEMENTWISE:
        return _elementwise
    if name in _MOVES:
        return move
    if name in _REDUCTIONS:
        return _reduce
    if name in _ALONG:
        return _along
    return _local if name in _LOCAL else unknown


def _elementwise(call: Call) -> Tensor:
    operands = call.operands
    result = operands[0]
    for other in operands[1:]:
        result = merge(call.classes, result, other, call.name)
    return result.expand(call.value.shape)


def _reduce(call: Call) -> Any:
    given = call.numbers[0]
    axes = call.argument(1, "dim", None)
    if len(call.operands) > 1 or isinstance(axes, bool):
        return _elementwise(call) if call.name in ("max", "min") else unknown(call)
    if axes is None:
        axes = list(range(given.dim()))
    axes = [axis % given.dim() for axis in ([axes] if isinstance(axes, int) else axes)]
    call.classes.even_out(given, axes, f"{call.name} sums over its channels")
    result = given
    for axis in sorted(axes, reverse=True):
        result = result.narrow(axis, 0, 1)
    kept = tensors_in(call.value)[0].dim() == given.dim()
    if not kept:
        for axis in sorted(axes, reverse=True):
            result = result.squeeze(axis)
    return map_tensors(call.value, lambda each: result)


def _along(call: Call) -> Any:
    given = call.numbers[0]
    axis = call.argument(1, "dim", None)
    axes = list(range(given.dim())) if axis is None else [axis]
    call.classes.even_out(given, axes, f"{call.name} weighs its channels against each other")
    return given


def _local(call: Call) -> Any:
    return local(call, _LOCAL[call.name])


def local(call: Call, rank: int) -> Any:
    """Return the numbers behind what mixes the last `rank` axes alone."""
    given = call.numbers[0]
    axes = list(range(given.dim() - rank, given.dim()))
    call.classes.even_out(given, axes, f"{call.name} mixes its channels")
    for axis in axes:
        given = given.narrow(axis, 0, 1)
    return map_tensors(call.value, lambda each: given.expand(each.shape))


def _interpolate(call: Call) -> Any:
    return local(call, call.numbers[0].dim() - 2)


def _pad(call: Call) -> Any:
    given, widths = call.numbers[0], call.argument(1, "pad")
    axes = [
        given.dim() - 1 - place // 2 for place, width in enumerate(widths) if width != 0
    ]  # fmt: skip
    call.classes.even_out(given, axes, "pad adds to its channels")
    for axis in axes:
        given = given.narrow(axis, 0, 1)
    return given.expand(call.value.shape)


def _glu(call: Call) -> Any:
    """Halves along an axis, of which the second opens and shuts the first."""
    first, second = call.numbers[0].chunk(2, call.argument(1, "dim", -1))
    return merge(call.classes, first, second, call.name)


def _normalize(call: Call) -> Any:
    """Batch and instance norm as functions; weights and statistics are `[channels]`."""
    given = call.numbers[0]
    channels = channel_vector(call.classes, given, 1, f"{call.name} mixes its channels")
    for other in call.operands[1:]:
        call.classes.join(channels, other, f"{call.name} scales it by what is no parameter")
    return given


_RULES: dict[str, Rule] = {
    "interpolate": _interpolate,
    "pad": _pad,
    "constant_pad_nd": _pad,
    "glu": _glu,
    "linear": linear,
    "addmm": addmm,
    "matmul": matmul,
    "bmm": matmul,
    "scaled_dot_product_attention": attention,
    "batch_norm": _normalize,
    "instance_norm": _normalize,
}
