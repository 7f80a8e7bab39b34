"""The output's structure, as the original gives it."""

from __future__ import annotations

import hashlib
from typing import Any, NamedTuple

from torch import Tensor

from compress.lift.values import Symbol, Value


def as_original(output: Value, expected: Any) -> Value:
    """Return `output` with named tuples where the original returns them.

    The walk sees plain tuples, since a graph knows no names; `expected` is the original's output.
    """
    if isinstance(expected, tuple) and isinstance(output, tuple | list):
        parts = [as_original(*pair) for pair in zip(output, expected, strict=True)]
        if not hasattr(expected, "_fields"):
            return tuple(parts)
        fields = [(n, _kind(v)) for n, v in zip(expected._fields, expected, strict=True)]
        return _named_tuple(type(expected).__name__, fields)(*parts)
    if isinstance(expected, list) and isinstance(output, list | tuple):
        return [as_original(*pair) for pair in zip(output, expected, strict=True)]
    if isinstance(expected, dict) and isinstance(output, dict):
        return {key: as_original(output[key], item) for key, item in expected.items()}
    return output


def _named_tuple(name: str, fields: list[tuple[str, Any]]) -> Any:
    """Return a class whose qualified name says its fields.

    TorchScript knows a named tuple by that name, for as long as the process lives, and takes no
    second one of other fields under it.
    """
    made = NamedTuple(name, fields)  # type: ignore[misc]
    digest = hashlib.sha256(repr(fields).encode()).hexdigest()[:16]
    made.__module__ = f"{__name__}.fields_{digest}"
    return made


def _kind(value: Any) -> Any:
    """The type that a field is annotated with, for TorchScript."""
    if isinstance(value, Tensor | Symbol):
        return Tensor
    if isinstance(value, tuple):
        return tuple[tuple(_kind(item) for item in value)]  # type: ignore[misc]
    if isinstance(value, list):
        return list[_kind(value[0]) if value else Tensor]  # type: ignore[misc]
    if isinstance(value, dict):
        first = next(iter(value.items()), ("", Tensor))
        return dict[type(first[0]), _kind(first[1])]  # type: ignore[misc]
    return Tensor | None if value is None else type(value)
