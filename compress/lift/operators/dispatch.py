"""Finds what lifts an operator call."""

from __future__ import annotations

from dataclasses import replace

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.operators import (  # noqa: F401  they register their rules
    attention,
    layers,
    linear,
    recurrent,
)
from compress.lift.operators.collections import lift_collections
from compress.lift.operators.functions import lift_function
from compress.lift.operators.inplace import lift_in_place, note_view
from compress.lift.operators.numbers import lift_numbers
from compress.lift.operators.registry import RULES, Call, overload_of
from compress.lift.values import Parts, Value, is_number


def lift_call(builder: GraphBuilder, call: Call) -> Value:
    """Lifts one operator call.

    Raises:
        UnsupportedOperator: Nothing here knows the operator.
    """
    for lift in (lift_numbers, lift_collections):
        result = lift(builder, call)
        if result is not NotImplemented:
            return result
    result = lift_in_place(builder, call, lift_functional)
    if result is NotImplemented:
        result = lift_functional(builder, call)
        note_view(builder, call, result, lift_functional)
    return result


def lift_functional(builder: GraphBuilder, call: Call) -> Value:
    """Lifts a call that changes none of its operands."""
    if any(isinstance(value, Parts) for value in call.values) and not _names_a_part(call):
        whole = {k: v.whole if isinstance(v, Parts) else v for k, v in call.arguments.items()}
        call = replace(call, arguments=whole)
    rule = RULES.get(call.name)
    if rule is not None:
        result = rule(builder, call)
        if result is not NotImplemented:
            return result
    result = lift_function(builder, call)
    return lift_overload(builder, call) if result is NotImplemented else result


def lift_overload(builder: GraphBuilder, call: Call) -> Value:
    """The general way: the very operator of the original."""
    overload = overload_of(call)
    if overload is None:
        raise UnsupportedOperator(
            f"{builder.place} uses {call.name}, which cannot be lifted; "
            "export the model without it."
        )
    positional, keywords = call.split()
    types = {argument.name: str(argument.type) for argument in overload._schema.arguments}
    names = [name for name in call.arguments if name not in call.keyword_only]
    for index, (name, value) in enumerate(zip(names, positional, strict=False)):
        if types.get(name) == "Tensor" and is_number(value):
            positional[index] = builder.number_tensor(value)
    return builder.call(overload, *positional, **keywords)


def _names_a_part(call: Call) -> bool:
    """Whether a call takes one part that the graph knows by itself, counted from the front."""
    key = call.values[1] if call.name == "aten::__getitem__" else None
    return isinstance(key, int) and key >= 0
