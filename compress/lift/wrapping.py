"""Results of calls as symbols, which know whose memory they share."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

from torch import Tensor, fx

from compress.errors import UnsupportedOperator
from compress.lift.values import Symbol, Value, shares_memory


def fold(result: Any, symbols: Sequence[Symbol]) -> Value:
    """The result of a call of which no input decides anything: a constant."""
    aliases = _alias_finder(symbols)

    def inside(item: Any) -> Any:
        if isinstance(item, Tensor):
            return Symbol(item, aliases=aliases(item))
        if isinstance(item, list | tuple):
            return type(item)(inside(inner) for inner in item)
        return item

    return inside(result)


def wrap(
    graph: fx.Graph, place: str, result: Any, node: fx.Node, symbols: Sequence[Symbol]
) -> Value:
    """The result of a call, each tensor and number in it with a node of its own.

    Args:
        graph: Receives nodes for the parts.
        place: Where in the model the walk is, for messages.
        result: What the call gave for the example inputs.
        node: Computes it.
        symbols: What it was computed of.

    Raises:
        UnsupportedOperator: It is of a kind that no graph holds.
    """
    aliases = _alias_finder(symbols)
    from_data = any(symbol.from_data or symbol.is_tensor for symbol in symbols)

    def inside(item: Any, at: fx.Node) -> Any:
        if isinstance(item, Tensor):
            return Symbol(item, at, aliases=aliases(item))
        if isinstance(item, bool | int | float):
            return Symbol(item, at, from_data=from_data)
        if isinstance(item, list | tuple):
            parts = [
                inside(inner, graph.call_function(getitem, (at, index)))
                for index, inner in enumerate(item)
            ]
            return parts if isinstance(item, list) else tuple(parts)
        if isinstance(item, dict):
            return {
                key: inside(inner, graph.call_function(getitem, (at, key)))
                for key, inner in item.items()
            }
        if item is None or isinstance(item, str):
            return item
        raise UnsupportedOperator(
            f"{place} computes a {type(item).__name__}, which cannot be lifted."
        )

    return inside(result, node)


def _alias_finder(
    symbols: Sequence[Symbol],
) -> Callable[[Tensor], weakref.WeakSet[Symbol] | None]:
    tensors = [symbol for symbol in symbols if isinstance(symbol.value, Tensor)]

    def find(result: Tensor) -> weakref.WeakSet[Symbol] | None:
        for symbol in tensors:
            if shares_memory(symbol.value, result):  # type: ignore[arg-type]
                return symbol.aliases
        return None

    return find
