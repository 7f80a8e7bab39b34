"""Builds frozen dataclasses from JSON, tolerant of what this version does not know.

Fields of the service that a class lacks stay readable in `raw`; fields that an older service
does not send take their default. So client and service need not be of the same version.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field, fields
from datetime import datetime
from functools import cache
from typing import Any, TypeVar, Union, cast, get_args, get_origin

View_ = TypeVar("View_", bound="View")


@dataclass(frozen=True, kw_only=True)
class View:
    """Base of all typed answers. `raw` is the JSON object it was built from."""

    raw: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


def parse(kind: type[View_], data: Mapping[str, Any], **more: Any) -> View_:
    """Return `kind` built from a JSON object, and from `more` what is not in it."""
    hints = _hints(cast(Hashable, kind))
    known = {
        entry.name: _convert(hints[entry.name], data[entry.name])
        for entry in fields(kind)
        if entry.name in data and entry.name != "raw" and not entry.name.startswith("_")
    }
    return kind(raw=data, **known, **more)


def _convert(hint: Any, value: Any) -> Any:
    if value is None:
        return None
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _convert(next(arm for arm in get_args(hint) if arm is not type(None)), value)
    if origin is tuple and isinstance(value, list):
        item, *rest = get_args(hint)
        if rest == [Ellipsis]:
            return tuple(_convert(item, entry) for entry in value)
        return tuple(value)
    if isinstance(hint, type) and issubclass(hint, View) and isinstance(value, Mapping):
        return parse(hint, value)
    if hint is datetime and isinstance(value, str):
        return datetime.fromisoformat(value)
    return value


@cache
def _hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)
