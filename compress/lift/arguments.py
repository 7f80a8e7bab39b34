"""The arguments of `forward` as the graph's inputs, with their names, types and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any, Optional

from torch import Tensor, fx

from compress.lift.builder import GraphBuilder
from compress.lift.guards import call_leaf, expect_none, expect_tensor, expect_text
from compress.lift.values import Symbol, Value

_SIMPLE: dict[str, Any] = {
    "TensorType": Tensor, "IntType": int, "FloatType": float, "BoolType": bool, "StringType": str,
    "NumberType": float,
}  # fmt: skip


def place_arguments(
    builder: GraphBuilder, schema: Sequence[Any], inputs: Sequence[Any]
) -> tuple[list[Value], list[str]]:
    """Give the graph an input for each argument.

    Args:
        builder: The graph under way.
        schema: The arguments of `forward`, without `self`.
        inputs: Values of the first of them; the others keep their defaults.

    Returns:
        The arguments' values, and what is taken for granted of those that no guard can watch.
    """
    values: list[Value] = []
    assumed: list[str] = []
    for index, argument in enumerate(schema):
        given = index < len(inputs)
        value = inputs[index] if given else argument.default_value
        kind = annotation(argument.type)
        if not given and (kind is None or isinstance(value, list | dict | Tensor)):
            values.append(value)  # a default that no signature can hold stays inside
            continue
        default = {"default_value": argument.default_value} if argument.has_default_value() else {}
        node = builder.graph.placeholder(argument.name, None if kind is Tensor else kind, **default)
        graph = builder.graph
        if value is None:
            assumed.append(f"{argument.name} is None")
            if kind == Tensor | None:
                call_leaf(graph, expect_none, node, assumed[-1])
        elif isinstance(value, str):
            assumed.append(f"{argument.name} == {value!r}")
            call_leaf(graph, expect_text, node, value, assumed[-1])
        elif isinstance(value, Tensor) and kind == Tensor | None:
            node = call_leaf(graph, expect_tensor, node, f"{argument.name} is given")
        values.append(_spread(builder, value, node))
    return values, assumed


def annotation(kind: Any) -> Any:
    """The Python type that TorchScript reads as `kind`; None where there is none."""
    name = kind.kind()
    if name in _SIMPLE:
        return _SIMPLE[name]
    inner = [annotation(each) for each in kind.containedTypes()]
    if any(each is None for each in inner):
        return None
    if name == "OptionalType":
        return Optional[inner[0]]  # noqa: UP045  TorchScript's own spelling
    if name == "ListType":
        return list[inner[0]]  # type: ignore[valid-type]
    if name == "TupleType":
        return tuple[tuple(inner)]  # type: ignore[misc]
    if name == "DictType":
        return dict[inner[0], inner[1]]  # type: ignore[valid-type]
    return None


def _spread(builder: GraphBuilder, value: Any, node: fx.Node) -> Value:
    """An argument's value with a node for each tensor and number in it."""
    if isinstance(value, Tensor):
        builder.inputs.append(node)
    if isinstance(value, Tensor | bool | int | float):
        return Symbol(value, node)
    if isinstance(value, list | tuple):
        parts = [
            _spread(builder, item, builder.graph.call_function(getitem, (node, index)))
            for index, item in enumerate(value)
        ]
        return parts if isinstance(value, list) else tuple(parts)
    if isinstance(value, dict):
        return {
            key: _spread(builder, item, builder.graph.call_function(getitem, (node, key)))
            for key, item in value.items()
        }
    return value
