"""Types of forward's arguments, read from the text that TorchScript prints them as."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal, TypeGuard

_TOKEN = re.compile(r"[\w.]+|[\[\],]")
_MAX_DEPTH = 16
_MAX_NESTING = 100
_MAX_PARTS = 1000
"""Named tuples of named tuples may unfold to far more than the text is long."""

LeafForm = Literal["Tensor", "int", "float", "bool"]
Form = LeafForm | Literal["tuple", "list", "dict", "other"]


@dataclass(frozen=True)
class Kind:
    """A type.

    Attributes:
        form: What it is; `other` is what no array can be given for, such as `str`.
        text: As TorchScript prints it.
        is_optional: Whether None will do.
        class_name: Of a named tuple, its full name.
        keys: Of a tuple, the names of its fields or else their indices; of a dict, `int` or `str`.
        items: Types of a tuple's fields; of all that a list or a dict holds, the only one.
    """

    form: Form
    text: str
    is_optional: bool = False
    class_name: str = ""
    keys: tuple[str, ...] = ()
    items: tuple[Kind, ...] = ()

    @property
    def can_be_given(self) -> bool:
        """Whether arrays can be put into it."""
        if self.form in ("list", "dict"):
            return self.items[0].can_be_given
        if self.form == "tuple":
            return all(item.can_be_given or item.is_optional for item in self.items) and any(
                item.can_be_given for item in self.items
            )
        return self.form != "other"


def is_leaf(form: str) -> TypeGuard[LeafForm]:
    """Whether one array is all that is given for a type of this form."""
    return form in ("Tensor", "int", "float", "bool")


def read_type(text: str, fields: Mapping[str, Mapping[str, str]] | None = None) -> Kind:
    """Read a type such as `Optional[Dict[str, Tuple[Tensor, int]]]`.

    Args:
        text: The type.
        fields: Named tuples by their full name: field to type.
    """
    return _Reader(fields or {}).read(text, 0)


class _Reader:
    def __init__(self, fields: Mapping[str, Mapping[str, str]]) -> None:
        self._fields = fields
        self._parts = 0

    def read(self, text: str, depth: int) -> Kind:
        tokens = _TOKEN.findall(text)
        if "".join(tokens) != text.replace(" ", "") or tokens.count("[") > _MAX_NESTING:
            return Kind("other", text)
        tokens.reverse()
        kind = self._next(tokens, depth)
        return kind if not tokens else Kind("other", text)

    def _next(self, tokens: list[str], depth: int) -> Kind:
        """Read one type off the end of the reversed tokens."""
        name = tokens.pop() if tokens else ""
        items: list[Kind] = []
        if tokens and tokens[-1] == "[":
            while tokens and tokens.pop() in "[,":
                items.append(self._next(tokens, depth + 1))
        self._parts += 1
        if depth > _MAX_DEPTH or self._parts > _MAX_PARTS:
            return Kind("other", name)
        return self._make(name, tuple(items), depth)

    def _make(self, name: str, items: tuple[Kind, ...], depth: int) -> Kind:
        text = f"{name}[{', '.join(item.text for item in items)}]" if items else name
        if is_leaf(name) and not items:
            return Kind(name, text)
        if name in ("Optional", "Union") and items:
            return _choose(items, text, none=name == "Optional")
        if name == "Tuple" and items:
            return Kind("tuple", text, keys=tuple(map(str, range(len(items)))), items=items)
        if name == "List" and len(items) == 1:
            return Kind("list", text, items=items)
        if name == "Dict" and len(items) == 2 and items[0].text in ("int", "str"):
            return Kind("dict", text, keys=(items[0].text,), items=items[1:])
        if not items and self._fields.get(name):
            parts = tuple(self.read(part, depth + 1) for part in self._fields[name].values())
            keys = tuple(self._fields[name])
            return Kind("tuple", text, class_name=name, keys=keys, items=parts)
        return Kind("other", text, is_optional=name == "NoneType")


def _choose(items: tuple[Kind, ...], text: str, *, none: bool) -> Kind:
    """Return the type of a union that arrays are given for: a tensor, if it takes one."""
    none = none or any(item.is_optional for item in items)
    order = sorted(items, key=lambda item: (not item.can_be_given, item.form != "Tensor"))
    return replace(order[0], text=text, is_optional=none)
