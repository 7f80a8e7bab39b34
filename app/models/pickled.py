"""Reads TorchScript's data.pkl as data: a small machine of opcodes that runs nothing.

`pickle` itself would call whatever the file names. Here a global is only its name, a REDUCE only
a note of its arguments, and an object only its class name and its attributes.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import Unprocessable

MAX_OPCODES = 2_000_000
_REBUILD = "torch._utils _rebuild_tensor_v2"
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A global, by name: `module name`."""

    text: str


@dataclass(eq=False)
class Call:
    """What a REDUCE would have called."""

    function: Any
    arguments: Any


@dataclass(eq=False)
class Instance:
    """An object of a TorchScript class: `cls` as `__torch__.zoo.Net`, and its attributes."""

    cls: str
    attributes: dict[Any, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Persistent:
    """A storage: its pickled id, `(storage, type, key, device, numel)`."""

    id: Any


@dataclass(frozen=True)
class Tensor:
    """A tensor: where its elements lie, and its shape."""

    storage: str
    offset: int
    shape: tuple[int, ...]


def read_objects(data: bytes) -> Any:
    """Return the root object of a data.pkl.

    Raises:
        Unprocessable: `corrupt_pickle`.
    """
    try:
        return _run(data)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise Unprocessable(
            "The model's data.pkl is not as torch.jit.save writes it; export the model again.",
            code="corrupt_pickle",
        ) from error


def as_tensor(value: Any) -> Tensor | None:
    """Return the tensor that a pickled call would rebuild."""
    if not isinstance(value, Call) or value.function != Name(_REBUILD):
        return None
    arguments = value.arguments
    if not isinstance(arguments, tuple) or len(arguments) < 3:
        return None
    storage, offset, shape = arguments[:3]
    if not isinstance(storage, Persistent) or not isinstance(storage.id, tuple):
        return None
    if not isinstance(offset, int) or not isinstance(shape, tuple) or len(storage.id) < 3:
        return None
    if not all(isinstance(length, int) and length >= 0 for length in shape):
        return None
    return Tensor(str(storage.id[2]), offset, shape)


def _run(data: bytes) -> Any:
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    argument: Any
    for count, (opcode, argument, _position) in enumerate(pickletools.genops(data)):
        if count > MAX_OPCODES:
            raise ValueError("too many opcodes")
        name = opcode.name
        if name == "STOP":
            return stack.pop()
        if name == "PROTO":
            continue
        if name in _LITERALS:
            stack.append(argument)
        elif name in _CONSTANTS:
            stack.append(_CONSTANTS[name])
        elif name in ("EMPTY_LIST", "EMPTY_DICT"):
            stack.append([] if name == "EMPTY_LIST" else {})
        elif name == "MARK":
            stack.append(_MARK)
        elif name == "GLOBAL":
            stack.append(Name(argument))
        elif name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[argument])
        else:
            _step(name, stack)
    raise ValueError("no STOP")


def _step(name: str, stack: list[Any]) -> None:
    items: Sequence[Any]
    if name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name in _TUPLES:
        size = _TUPLES[name]
        items = tuple(stack[-size:])
        if len(items) != size:
            raise ValueError("stack underflow")
        stack[-size:] = [items]
    elif name == "LIST":
        stack.append(_pop_to_mark(stack))
    elif name in ("REDUCE", "NEWOBJ"):
        arguments, function = stack.pop(), stack.pop()
        is_class = isinstance(function, Name) and function.text.startswith("__torch__")
        stack.append(
            Instance(function.text.replace(" ", ".")) if is_class else Call(function, arguments)
        )
    elif name == "BUILD":
        state = stack.pop()
        if isinstance(stack[-1], Instance) and isinstance(state, dict):
            stack[-1].attributes.update(state)
    elif name == "BINPERSID":
        stack.append(Persistent(stack.pop()))
    elif name in ("SETITEMS", "SETITEM"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if isinstance(key, str | int | float | bool):  # tensors and tuples are no attributes
                stack[-1][key] = value
    elif name in ("APPENDS", "APPEND"):
        items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
        stack[-1].extend(items)
    else:
        raise ValueError(f"opcode {name} is not used by TorchScript")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    at = len(stack) - 1
    while stack[at] is not _MARK:
        at -= 1
        if at < 0:
            raise ValueError("no mark")
    items = stack[at + 1 :]
    del stack[at:]
    return items


_LITERALS = frozenset({
    "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BININT", "BININT1", "BININT2", "LONG1",
    "LONG4", "BINFLOAT", "BINBYTES", "SHORT_BINBYTES", "BINSTRING", "SHORT_BINSTRING",
})  # fmt: skip
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
