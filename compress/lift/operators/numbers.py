"""Arithmetic on sizes and other numbers: Python functions that FX can trace again.

TorchScript holds numbers as ints and floats, a trace also as 0-dimensional tensors. Both are plain
Python numbers here.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch

from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Symbol, Value, is_number, symbols_in

# Emitted as they are when an operand depends on the input.
ARITHMETIC: dict[str, Callable[..., Any]] = {
    "aten::add": operator.add,
    "aten::sub": operator.sub,
    "aten::mul": operator.mul,
    "aten::div": operator.truediv,
    "aten::true_divide": operator.truediv,
    "aten::floordiv": operator.floordiv,
    "aten::floor_divide": operator.floordiv,
    "aten::remainder": operator.mod,
    "aten::fmod": operator.mod,
    "aten::pow": operator.pow,
    "aten::neg": operator.neg,
    "aten::eq": operator.eq,
    "aten::ne": operator.ne,
    "aten::lt": operator.lt,
    "aten::le": operator.le,
    "aten::gt": operator.gt,
    "aten::ge": operator.ge,
    "aten::__and__": operator.and_,
    "aten::__or__": operator.or_,
    "aten::__xor__": operator.xor,
    "aten::__lshift__": operator.lshift,
    "aten::__rshift__": operator.rshift,
    "aten::__not__": operator.not_,
    "aten::abs": operator.abs,
    "aten::sqrt": math.sqrt,
    "aten::exp": math.exp,
    "aten::log": math.log,
    "aten::sin": math.sin,
    "aten::cos": math.cos,
    "aten::floor": math.floor,
    "aten::ceil": math.ceil,
    "aten::round": round,
    "prim::abs": operator.abs,
    "prim::min": min,
    "prim::max": max,
}

_CASTS: dict[str, Callable[..., Any]] = {
    "aten::Int": int,
    "aten::IntImplicit": int,
    "aten::Float": float,
    "aten::FloatImplicit": float,
    "aten::Bool": bool,
}
_IDENTITIES = frozenset(
    {"aten::ScalarImplicit", "aten::item", "prim::NumToTensor", "aten::detach", "aten::clone",
     "aten::scalar_tensor", "aten::contiguous", "aten::cpu"}
)  # fmt: skip
_FLOATS = frozenset({torch.float16, torch.float32, torch.float64, torch.bfloat16})


def lift_numbers(builder: GraphBuilder, call: Call) -> Value:
    """Lifts a call whose operands are all numbers; `NotImplemented` when it is none."""
    values = call.values
    if not values or not is_number(values[0]):
        return NotImplemented
    first = values[0]
    if call.name in _IDENTITIES:
        return first
    if call.name == "aten::to":
        return _convert(builder, call)
    if call.name in _CASTS:
        return _cast(builder, call.name, first)
    if call.name == "aten::rsub" and is_number(values[1]):
        return _apply(builder, operator.sub, [values[1], first])
    function = ARITHMETIC.get(call.name)
    if function is None:
        return NotImplemented
    operands = [v for k, v in call.arguments.items() if k not in call.keyword_only and k != "alpha"]
    operands = [_as_number(operand) for operand in operands]
    if not all(is_number(operand) for operand in operands):
        return NotImplemented
    if call.get("alpha", 1) != 1:
        operands[1] = _apply(builder, operator.mul, [operands[1], call["alpha"]])
    mode = call.get("rounding_mode")
    if call.name == "aten::div" and mode is not None:
        function = operator.floordiv  # sizes are positive: trunc and floor agree
    return _apply(builder, function, operands)


def _as_number(value: Value) -> Value:
    """A 0-dimensional constant tensor, as traces hold numbers, becomes a number."""
    if isinstance(value, Symbol) and value.is_constant and value.is_tensor:
        tensor = value.value
        assert isinstance(tensor, torch.Tensor)
        if tensor.dim() == 0:
            return tensor.item()
    return value


def _apply(builder: GraphBuilder, function: Callable[..., Any], operands: list[Value]) -> Value:
    if not symbols_in(operands):
        return function(*operands)
    if function in (math.floor, math.ceil):
        return _round_down_or_up(builder, function, operands[0])
    if function is operator.not_:
        return builder.call(operator.eq, operands[0], False)
    if function is round:  # Python gives an integer, TorchScript a float
        return round(builder.fixed(operands[0]))
    return builder.call(function, *operands)


def _round_down_or_up(builder: GraphBuilder, function: Callable[..., Any], value: Value) -> Value:
    if isinstance(value.value, int):
        return value
    if function is math.floor:
        return builder.call(torch.sym_int, builder.call(operator.floordiv, value, 1))
    down = builder.call(operator.floordiv, builder.call(operator.neg, value), 1)
    return builder.call(torch.sym_int, builder.call(operator.neg, down))


def _cast(builder: GraphBuilder, name: str, value: Value) -> Value:
    kind = _CASTS[name]
    if not isinstance(value, Symbol):
        return kind(value)
    if kind is bool:
        return value if isinstance(value.value, bool) else builder.call(operator.ne, value, 0)
    if kind is int:
        return value if isinstance(value.value, int) else builder.call(torch.sym_int, value)
    return value if isinstance(value.value, float) else builder.call(operator.mul, value, 1.0)


def _convert(builder: GraphBuilder, call: Call) -> Value:
    """`aten::to` on a number of a trace: only the kind of number matters."""
    first = call.values[0]
    dtype = call.get("dtype")
    if dtype is None:
        return first
    return _cast(builder, "aten::Float" if dtype in _FLOATS else "aten::Int", first)


@rule("aten::Int", "aten::IntImplicit", "aten::Float", "aten::FloatImplicit", "aten::Bool",
      "aten::item", "aten::ScalarImplicit")  # fmt: skip
def _read(builder: GraphBuilder, call: Call) -> Value:
    """Reads a number out of a tensor's data."""
    tensor = call.values[0]
    if not isinstance(tensor, Symbol) or not isinstance(tensor.value, torch.Tensor):
        return NotImplemented
    kind = _CASTS.get(call.name)
    if kind is None:
        dtype = tensor.value.dtype
        kind = bool if dtype == torch.bool else float if dtype.is_floating_point else int
    return builder.call(kind, tensor)
