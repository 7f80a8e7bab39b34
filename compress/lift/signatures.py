"""The arguments of an operator of `torch.ops`, as its schema has them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Signature:
    """An operator's arguments.

    Attributes:
        name: Of the operator that changes nothing, where this one writes in place.
        overload: The one for tensors, where this one is for a number.
        names: Of the arguments.
        written: Names of those that it writes to.
        defaults: Name to default value.
    """

    name: str
    overload: str
    names: tuple[str, ...]
    written: tuple[str, ...]
    defaults: dict[str, Any]

    def is_default(self, name: str, value: Any) -> bool:
        """Whether an argument might as well be left out."""
        if name not in self.defaults or isinstance(value, Tensor):
            return False
        default = self.defaults[name]
        return type(value) is type(default) and bool(value == default)


@functools.lru_cache(maxsize=4096)
def read_signature(func: Any) -> Signature:
    """The signature of an overload."""
    schema = func._schema
    written = tuple(
        argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    )
    name = schema.name
    if written and name.endswith("_") and not name.endswith("__"):
        name = name[:-1]
    return Signature(
        name,
        schema.overload_name.replace("Scalar", "Tensor"),
        tuple(argument.name for argument in schema.arguments),
        written,
        {a.name: a.default_value for a in schema.arguments if a.has_default_value()},
    )
