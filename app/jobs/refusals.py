"""How a submit says no."""

from __future__ import annotations

from app.errors import FieldError, Unprocessable


def refuse(code: str, pointer: str, detail: str) -> Unprocessable:
    """Return the error that names one field."""
    return Unprocessable(detail, code=code, errors=[FieldError(pointer, detail)])
