"""What is known of an array, and how a dataset is refused."""

from __future__ import annotations

from dataclasses import dataclass

from app.errors import FieldError, Unprocessable


@dataclass(frozen=True)
class ArrayFacts:
    """One array: its name, NumPy's name of its dtype, its shape, and its bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def refuse_array(code: str, name: str, detail: str) -> Unprocessable:
    """Return the error that names an array."""
    pointer = "/file/" + name.replace("~", "~0").replace("/", "~1")
    return Unprocessable(detail, code=code, errors=[FieldError(pointer, detail)])


def unsupported_dtype(name: str, dtype: str) -> Unprocessable:
    """Return the error for an element type that models do not take."""
    return refuse_array(
        "unsupported_dtype",
        name,
        f"{name} has elements of the type {dtype!a}; use float16, float32, float64, int8 to "
        "int64, uint8 or bool, in the processor's own byte order.",
    )
