"""Reads TorchScript's pickles as data: a small machine of opcodes that runs nothing.

`pickle` itself would call whatever the file names. The machine takes no more than torch's own
pickler writes: torch's unpickler (torch/csrc/jit/serialization/unpickler.cpp) believes what it
reads, and what the two understand differently would go unchecked.
"""

from __future__ import annotations

import pickletools
import re
from typing import Any

from app.errors import Unprocessable
from app.models.pickled import (
    Instance,
    Keyed,
    Pickled,
    Storage,
    Tensor,
    check_depth,
    corrupt_pickle,
    expect,
    read_name,
    read_storage,
    reduce,
)

MAX_OPCODES = 500_000
_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS_RUN = re.compile(
    rb"(?:[()t\]eR\x85-\x89N]|[Kqh].|M..|[Jrj].{4}|G.{8}|\x8a\x08.{8}"
    rb"|ctorch\.jit\._pickle\nbuild_intlist\n)*",
    re.DOTALL,
)
_MARK = object()


def read_objects(name: str, data: bytes) -> Pickled:
    """Return what the pickle `name` holds.

    Raises:
        Unprocessable: corrupt_pickle, forbidden_global, class_not_allowed, pickle_too_large,
            pickle_too_deep.
    """
    try:
        machine = _Machine()
        root = machine.run(data)
        check_depth(root, name)
    except (ValueError, IndexError, KeyError, TypeError, AttributeError, UnicodeError) as error:
        raise corrupt_pickle(name) from error
    return Pickled(root, machine.storages, machine.tensors, machine.instances)


def check_literals(name: str, data: bytes) -> None:
    """Refuse a pickle that holds more than numbers, strings, and tuples and lists of them.

    For what is long and read by nobody unless a model fails: at the speed of a regular expression.

    Raises:
        Unprocessable: `corrupt_pickle`.
    """
    at = 2 if data.startswith(b"\x80\x02") else len(data)
    while found := _LITERALS_RUN.match(data, at):
        at = found.end()
        if data[at : at + 1] != b"X":
            break
        at += 5 + int.from_bytes(data[at + 1 : at + 5], "little")
    if data[at:] != b".":
        raise corrupt_pickle(name)


class _Machine:
    def __init__(self) -> None:
        self.storages: list[Storage] = []
        self.tensors: list[Tensor] = []
        self.instances: list[Instance] = []
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}
        self._unbuilt = 0

    def run(self, data: bytes) -> Any:
        stack, memo = self._stack, self._memo
        if not data.startswith(b"\x80\x02"):
            raise ValueError("another protocol")
        argument: Any
        for count, (opcode, argument, position) in enumerate(pickletools.genops(data)):
            if count > MAX_OPCODES:
                raise Unprocessable(
                    f"A pickle of the model has over {MAX_OPCODES} steps. Keep tables that large "
                    "in tensors.",
                    code="pickle_too_large",
                )
            name = opcode.name
            if name in ("BINPUT", "LONG_BINPUT"):
                value = stack[-1]
                if value is _MARK or (type(value) is Instance and not value.is_built):
                    raise ValueError("remembers what is not finished")
                memo[argument] = value
            elif name in ("BINGET", "LONG_BINGET"):
                stack.append(memo[argument])
            elif name in _LITERALS:
                stack.append(argument)
            elif name in _CONSTANTS:
                stack.append(_CONSTANTS[name])
            elif name == "MARK":
                stack.append(_MARK)
            elif name == "STOP":
                if len(stack) != 1 or stack[0] is _MARK or self._unbuilt:
                    raise ValueError("not finished")
                if position != len(data) - 1:
                    raise ValueError("something follows the end")
                return stack[0]
            elif name != "PROTO" or position:
                self._step(name, argument)
        raise ValueError("no STOP")

    def _step(self, name: str, argument: Any) -> None:
        stack = self._stack
        if name == "TUPLE":
            stack.append(tuple(self._pop_to_mark()))
        elif name in _TUPLES:
            items = tuple(self._pop() for _ in range(_TUPLES[name]))
            stack.append(items[::-1])
        elif name == "EMPTY_LIST":
            stack.append([])
        elif name == "EMPTY_DICT":
            stack.append({})
        elif name == "GLOBAL":
            stack.append(read_name(argument))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            made = reduce(function.text, arguments)
            if isinstance(made, Tensor):
                self.tensors.append(made)
            stack.append(made)
        elif name == "NEWOBJ":
            arguments, function = self._pop(), self._pop()
            if arguments != () or not function.text.startswith("__torch__"):
                raise ValueError("makes something else than an object")
            self._unbuilt += 1
            self.instances.append(Instance(function.text.replace(" ", ".")))
            stack.append(self.instances[-1])
        elif name == "BUILD":
            state, instance = self._pop(), stack[-1]
            if not isinstance(instance, Instance) or instance.is_built:
                raise ValueError("builds something else than a new object")
            instance.state, instance.is_built = state, True
            self._unbuilt -= 1
        elif name == "BINPERSID":
            self.storages.append(read_storage(self._pop()))
            stack.append(self.storages[-1])
        elif name in ("SETITEMS", "SETITEM"):
            pairs = self._pop_to_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            expect(stack[-1], dict)
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if not isinstance(key, str | int | float | bool):
                    key = Keyed(key)  # a tensor, tuple or device as a key
                stack[-1][key] = value
        elif name in ("APPENDS", "APPEND"):
            added = self._pop_to_mark() if name == "APPENDS" else [self._pop()]
            expect(stack[-1], list).extend(added)
        else:
            raise ValueError(f"opcode {name} is not used by TorchScript")

    def _pop(self) -> Any:
        value = self._stack.pop()
        if value is _MARK:
            raise ValueError("takes a mark")
        return value

    def _pop_to_mark(self) -> list[Any]:
        stack = self._stack
        at = len(stack) - 1
        while stack[at] is not _MARK:
            at -= 1
            if at < 0:
                raise ValueError("no mark")
        items = stack[at + 1 :]
        del stack[at:]
        return items
