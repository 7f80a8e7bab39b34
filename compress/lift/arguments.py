"""The arguments of `forward` as the graph's inputs, with their names, types and defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any, Optional

import torch
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
    spreader = _Spreader(builder, assumed)
    for index, argument in enumerate(schema):
        given = index < len(inputs)
        value = inputs[index] if given else argument.default_value
        kind = annotation(argument.type)
        if not given and (kind is None or isinstance(value, list | dict | Tensor)):
            values.append(value)  # a default that no signature can hold stays inside
            continue
        default = {"default_value": argument.default_value} if argument.has_default_value() else {}
        node = builder.graph.placeholder(argument.name, None if kind is Tensor else kind, **default)
        values.append(spreader.spread(value, node, argument.type, argument.name))
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


@dataclass(frozen=True)
class _Spreader:
    """Gives each tensor and number in an argument a node of its own.

    Attributes:
        builder: The graph under way.
        assumed: Receives what is taken for granted.
    """

    builder: GraphBuilder
    assumed: list[str]

    def spread(self, value: Any, node: fx.Node, kind: Any, name: str) -> Value:
        """Return the value of an argument or of a part of one.

        Args:
            value: What the example has there.
            node: Computes it.
            kind: Its TorchScript type.
            name: As a reader would write it: `batch.mask`.
        """
        if value is None:
            self.assumed.append(f"{name} is None")
            if annotation(kind) == Tensor | None:
                self._check(expect_none, node, self.assumed[-1])
            return value
        if isinstance(value, str):
            self.assumed.append(f"{name} == {value!r}")
            self._check(expect_text, node, value, self.assumed[-1])
        if kind.kind() == "OptionalType":
            kind = kind.getElementType()
            if isinstance(value, Tensor):
                node = self._check(expect_tensor, node, f"{name} is given")
            elif not isinstance(value, str):
                unwrap: Any = torch.jit._unwrap_optional  # type: ignore[attr-defined]
                # no leaf: torch.fx cannot patch a function of torch's own
                node = self.builder.graph.call_function(unwrap, (node,))
        if isinstance(value, Tensor):
            self.builder.inputs.append(node)
        if isinstance(value, Tensor | bool | int | float):
            return Symbol(value, node)
        inner = list(kind.containedTypes())
        if isinstance(value, tuple):
            fields = getattr(value, "_fields", None)
            told = [f".{field}" for field in fields or ()] or [f"[{i}]" for i in range(len(value))]
            return tuple(
                self._part(index, item, node, inner[index], name + told[index])
                for index, item in enumerate(value)
            )
        if isinstance(value, list):
            return [
                self._part(index, item, node, inner[0], f"{name}[{index}]")
                for index, item in enumerate(value)
            ]
        if isinstance(value, dict):
            return {
                key: self._part(key, item, node, inner[1], f"{name}[{key!r}]")
                for key, item in value.items()
            }
        return value

    def _part(self, key: Any, value: Any, whole: fx.Node, kind: Any, name: str) -> Value:
        node = self.builder.graph.create_node(
            "call_function", getitem, (whole, key), name=f"{whole.name}_{key}"
        )
        return self.spread(value, node, kind, name)

    def _check(self, function: Any, node: fx.Node, *arguments: Any) -> fx.Node:
        return call_leaf(self.builder.graph, function, node, *arguments)
