"""The values a walk over a TorchScript graph carries: each concrete, and beside it its FX node.

Plain Python objects (int, float, str, None, list, tuple, dict) stand for themselves. Tensors, and
numbers that depend on the input, are `Symbol`s. Containers hold either.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

Value = Any
"""A `Symbol`, a `ModuleRef`, a `FunctionRef`, a plain Python object, or a container of these."""


class Symbol:
    """A tensor, a number that depends on the input, or a list of as many tensors as it says.

    Symbols are mutable on purpose: an in-place operator gives the symbol a new node and value, so
    every holder of the tensor (a variable, a list) sees the new one, as in the original program.

    Attributes:
        value: What it is for the example inputs.
        node: The FX node that computes it; None for constants and attributes not yet used.
        path: Dotted name, for a parameter, buffer or tensor attribute of the model.
        transposed: The 2d attribute that this symbol is the transpose of, if it is one.
        from_data: A number read out of a tensor's elements, not out of its shape; a tensor that
            an earlier call left, whose shape is not known.
        state: Module and name of the attribute of the model's state that it is.
        stale: Whether its memory has been written to through an alias, so that it must be
            computed anew.
        view: How it was made, if it is a view of another symbol.
    """

    __slots__ = (
        "__weakref__", "aliases", "from_data", "node", "path", "stale", "state", "transposed",
        "value", "view",
    )  # fmt: skip

    def __init__(
        self,
        value: Tensor | bool | int | float | list[Tensor],
        node: fx.Node | None = None,
        *,
        path: str | None = None,
        aliases: weakref.WeakSet[Symbol] | None = None,
        from_data: bool = False,
    ) -> None:
        self.value = value
        self.node = node
        self.path = path
        self.transposed: Symbol | None = None
        self.from_data = from_data
        self.stale = False
        self.state: tuple[str, str] | None = None
        self.view: View | None = None
        self.aliases: weakref.WeakSet[Symbol] = weakref.WeakSet() if aliases is None else aliases
        self.aliases.add(self)

    @property
    def is_constant(self) -> bool:
        """Whether neither the input nor a weight of the model can change it."""
        return self.node is None and self.path is None

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.value, Tensor)

    @property
    def is_attribute(self) -> bool:
        return self.path is not None

    def rebind(self, value: Tensor, node: fx.Node | None) -> None:
        """Takes the result of an in-place operator, and tells the aliases.

        A symbol of the very same elements in the same order takes it too. Other views of the old
        storage become stale.
        """
        old = self.value
        assert isinstance(old, Tensor)
        members = list(self.aliases)
        fresh: weakref.WeakSet[Symbol] = weakref.WeakSet()
        for alias in members:
            if not alias.stale and isinstance(alias.value, Tensor) and _same(alias.value, old):
                alias.adopt(value, node, fresh)
            else:
                alias.stale = True

    def adopt(self, value: Tensor, node: fx.Node | None, aliases: weakref.WeakSet[Symbol]) -> None:
        """Becomes another value, in the company of `aliases`."""
        self.value, self.node, self.path, self.stale = value, node, None, False
        self.transposed = None
        self.aliases = aliases
        aliases.add(self)


@dataclass(frozen=True)
class View:
    """A view's origin: `base`, how to take the view again, and how to write through it.

    Attributes:
        base: Symbol it views.
        renew: Takes the same view of what `base` is now.
        scatter: Gives `base` with the view's elements replaced; None where that is not known.
    """

    base: Symbol
    renew: Callable[[], Symbol]
    scatter: Callable[[Symbol], Symbol] | None


def _same(a: Tensor, b: Tensor) -> bool:
    return a is b or (
        shares_memory(a, b)
        and a.storage_offset() == b.storage_offset()
        and a.shape == b.shape
        and a.stride() == b.stride()
    )


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    try:
        return bool(a.untyped_storage()._cdata == b.untyped_storage()._cdata)
    except (RuntimeError, NotImplementedError):  # sparse and opaque tensors have no storage
        return a is b


class Parts(list[Symbol]):
    """The parts of a tensor, as many as its size makes them.

    Attributes:
        whole: The list as one value, for uses that hold for any number of parts.
        length: How many there are.
    """

    def __init__(self, parts: Sequence[Symbol], whole: Symbol, length: Symbol) -> None:
        super().__init__(parts)
        self.whole = whole
        self.length = length


@dataclass(frozen=True)
class ModuleRef:
    """A submodule of the original. `path` is its dotted name, empty for the root."""

    path: str
    module: torch.jit.ScriptModule

    def child_path(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name


@dataclass(frozen=True)
class FunctionRef:
    """A TorchScript function held in a constant."""

    name: str
    constant: torch._C.Node


def map_symbols(value: Value, change: Callable[[Symbol], Any]) -> Any:
    """Copies nested containers, with every symbol replaced by `change(symbol)`."""
    if isinstance(value, Symbol):
        return change(value)
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_symbols(item, change) for item in value))
    if isinstance(value, Parts):
        return [map_symbols(item, change) for item in value]
    if isinstance(value, list | tuple):
        return type(value)(map_symbols(item, change) for item in value)
    if isinstance(value, slice):
        return slice(*(map_symbols(end, change) for end in (value.start, value.stop, value.step)))
    if isinstance(value, dict):
        return {key: map_symbols(item, change) for key, item in value.items()}
    return value


def symbols_in(value: Value) -> list[Symbol]:
    """All symbols inside nested containers."""
    found: list[Symbol] = []
    map_symbols(value, found.append)
    return found


def concrete(value: Value) -> Any:
    """The value with its symbols replaced by what they are for the example inputs."""
    return map_symbols(value, lambda symbol: symbol.value)


def is_number(value: Value) -> bool:
    """A Python number or a symbol of one; bools count."""
    raw = value.value if isinstance(value, Symbol) else value
    return isinstance(raw, bool | int | float)
