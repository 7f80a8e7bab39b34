"""In-place operators become functional: their tensor takes the new value for all later uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call
from compress.lift.values import Symbol, Value

Lift = Callable[[GraphBuilder, Call], Value]


def lift_in_place(builder: GraphBuilder, call: Call, lift_functional: Lift) -> Value:
    """Lifts a call that changes its first operand; `NotImplemented` when it changes none."""
    name = call.name
    if not name.endswith("_") or name.endswith("__"):
        return NotImplemented
    target = call.values[0]
    if not isinstance(target, Symbol) or not isinstance(target.value, Tensor):
        return NotImplemented
    if target.is_attribute:
        raise UnsupportedOperator(
            f"{builder.place} changes its own state '{target.path}' with {name}, "
            "which cannot be lifted yet; export the model in eval mode."
        )
    if name == "aten::copy_":
        result = builder.call(torch.Tensor.expand_as, call["src"], target)
    elif name == "aten::fill_":
        result = builder.call(torch.full_like, target, call["value"])
    elif name == "aten::zero_":
        result = builder.call(torch.zeros_like, target)
    else:
        result = lift_functional(builder, replace(call, name=name[:-1]))
    assert isinstance(result, Symbol)
    assert isinstance(result.value, Tensor)
    if result.value.dtype != target.value.dtype:
        result = builder.call_method("to", result, target.value.dtype)
    if result is not target:
        target.rebind(result.value, result.node)
    return target
