"""Tensors inside the structures that `forward` takes and gives: lists, tuples, dicts, nested."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(value: Any, change: Callable[[Tensor], Any]) -> Any:
    """Copies nested containers, with every tensor replaced by `change(tensor)`.

    Named tuples stay what they are; whatever else is no container stays as it is.
    """
    if isinstance(value, Tensor):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(item, change) for item in value))
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(item, change) for item in value)
    if isinstance(value, dict):
        return {key: map_tensors(item, change) for key, item in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    """All tensors inside nested containers, in order."""
    found: list[Tensor] = []
    map_tensors(value, found.append)
    return found
