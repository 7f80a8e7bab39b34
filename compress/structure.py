"""Tensors inside the structures that `forward` takes and gives: lists, tuples, dicts, nested."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
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


def cast_floats(inputs: Sequence[Any], dtype: torch.dtype) -> list[Any]:
    """Copies a call's arguments, with their floating-point tensors in `dtype`."""
    return [
        map_tensors(value, lambda each: each.to(dtype) if each.is_floating_point() else each)
        for value in inputs
    ]


def batch_length(inputs: Sequence[Any]) -> int:
    """Length of the first axis of the first tensor in a call's arguments; 1 where it has none."""
    tensors = tensors_in(list(inputs))
    return int(tensors[0].shape[0]) if tensors and tensors[0].dim() else 1
