"""Reads TorchScript's pickles as data: a small machine of opcodes that runs nothing.

`pickle` itself would call whatever the file names. Here a global is only its name, an object only
its class name and its attributes, and a tensor only what is known of it. The machine takes no more
than torch's own pickler writes: torch's unpickler (torch/csrc/jit/serialization/unpickler.cpp)
believes what it reads, and what the two understand differently would go unchecked.
"""

from __future__ import annotations

import pickletools
import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.errors import Unprocessable

MAX_OPCODES = 500_000
MAX_DEPTH = 200
ITEM_BYTES = {
    "torch FloatStorage": 4, "torch DoubleStorage": 8, "torch HalfStorage": 2,
    "torch BFloat16Storage": 2, "torch LongStorage": 8, "torch IntStorage": 4,
    "torch ShortStorage": 2, "torch CharStorage": 1, "torch ByteStorage": 1,
    "torch BoolStorage": 1, "torch ComplexFloatStorage": 8, "torch ComplexDoubleStorage": 16,
}  # fmt: skip
_REBUILD = "torch._utils _rebuild_tensor_v2"
_PLAIN_CALLS = frozenset({
    "collections OrderedDict", "builtins complex", "torch device",
    "torch.jit._pickle build_intlist", "torch.jit._pickle build_tensorlist",
    "torch.jit._pickle build_doublelist", "torch.jit._pickle build_boollist",
    "torch.jit._pickle restore_type_tag",
})  # fmt: skip
_CLASS = re.compile(r"__torch__(?:\.\w+)* \w+")
_TORCHBIND = "__torch__.torch.classes"
_MARK = object()


@dataclass(frozen=True)
class Name:
    """A global, by name: `module name`."""

    text: str


@dataclass(eq=False)
class Call:
    """What a REDUCE would have called."""

    function: str
    arguments: Any


@dataclass(eq=False)
class Instance:
    """An object of a TorchScript class: `cls` as `__torch__.zoo.Net`, and its state."""

    cls: str
    state: Any = None
    is_built: bool = False

    @property
    def attributes(self) -> dict[Any, Any]:
        return self.state if isinstance(self.state, dict) else {}


@dataclass(frozen=True)
class Storage:
    """Bytes of tensors: the record that holds them, and how many there should be."""

    key: str
    numel: int
    item_bytes: int


class Tensor(NamedTuple):
    """A tensor: where its elements lie, and its shape."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


@dataclass
class Pickled:
    """What a pickle holds."""

    root: Any
    storages: list[Storage] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)


def read_objects(name: str, data: bytes) -> Pickled:
    """Return what the pickle `name` holds.

    Raises:
        Unprocessable: corrupt_pickle, forbidden_global, class_not_allowed, pickle_too_large,
            pickle_too_deep.
    """
    try:
        machine = _Machine()
        root = machine.run(data)
        _check_depth(root, name)
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
            stack.append(_name(argument))
        elif name == "REDUCE":
            arguments, function = self._pop(), self._pop()
            stack.append(self._call(function.text, arguments))
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
            stack.append(self._storage(self._pop()))
        elif name in ("SETITEMS", "SETITEM"):
            pairs = self._pop_to_mark() if name == "SETITEMS" else [self._pop(), self._pop()][::-1]
            _expect(stack[-1], dict)
            for key, value in zip(pairs[::2], pairs[1::2], strict=True):
                if not isinstance(key, str | int | float | bool):
                    key = _Keyed(key)  # a tensor, tuple or device as a key
                stack[-1][key] = value
        elif name in ("APPENDS", "APPEND"):
            added = self._pop_to_mark() if name == "APPENDS" else [self._pop()]
            _expect(stack[-1], list).extend(added)
        else:
            raise ValueError(f"opcode {name} is not used by TorchScript")

    def _call(self, function: str, arguments: Any) -> Any:
        if function == _REBUILD:
            tensor = _tensor(arguments)
            self.tensors.append(tensor)
            return tensor
        if not function.startswith("__torch__") and function not in _PLAIN_CALLS:
            raise ValueError("calls what is no function")
        return Call(function, _expect(arguments, tuple))

    def _storage(self, pid: Any) -> Storage:
        kind, dtype, key, _device, numel = _expect(pid, tuple)
        if kind != "storage" or type(numel) is not int or numel < 0:
            raise ValueError("no storage")
        storage = Storage(_expect(key, str), numel, ITEM_BYTES[dtype.text])
        self.storages.append(storage)
        return storage

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


class _Keyed:
    """A key that is no plain value; told apart by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


def _name(text: str) -> Name:
    if text.replace(" ", ".").startswith(_TORCHBIND):
        raise class_not_allowed(text.replace(" ", "."))
    if text == _REBUILD or text in _PLAIN_CALLS or text in ITEM_BYTES or _CLASS.fullmatch(text):
        return Name(text)
    raise Unprocessable(
        f"The model's pickle names {text[:100]!a}, which is not on the list of what models need. "
        "Save the model with torch.jit.save; keep weights dense and not quantized.",
        code="forbidden_global",
    )


def class_not_allowed(name: str) -> Unprocessable:
    """Return the error for a class whose methods are C++."""
    return Unprocessable(
        f"The model holds an object of {name[:100]!a}, a class of C++ code; quantized layers have "
        "such. Upload the float model that it was made from.",
        code="class_not_allowed",
    )


def _tensor(arguments: Any) -> Tensor:
    storage, offset, shape, strides, _requires_grad, hooks, *metadata = _expect(arguments, tuple)
    if not isinstance(storage, Storage) or hooks.arguments != () or len(metadata) > 1:
        raise ValueError("no tensor")
    if any(type(bit) is not bool for bits in metadata for bit in _expect(bits, dict).values()):
        raise ValueError("no metadata")
    for sizes in (shape, strides, (offset,)):
        if not all(type(size) is int and size >= 0 for size in _expect(sizes, tuple)):
            raise ValueError("sizes that are none")
    if len(shape) != len(strides):
        raise ValueError("shape and strides do not fit")
    return Tensor(storage, offset, shape, strides)


def _expect(value: Any, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"no {kind.__name__}")
    return value


def _check_depth(root: Any, name: str) -> None:
    """Refuse what torch, which recurses, would need too much stack for; cycles too."""
    depths: dict[int, int] = {}
    waiting: list[tuple[Any, bool]] = [(root, False)]
    while waiting:
        value, is_after = waiting.pop()
        inner = _inner(value)
        if is_after:
            depths[id(value)] = depth = 1 + max(depths.get(id(each), 0) for each in inner)
            if depth > MAX_DEPTH:
                raise _too_deep(name)
        elif inner and id(value) not in depths:
            depths[id(value)] = MAX_DEPTH  # until known, so that a cycle is too deep
            waiting.append((value, True))
            waiting.extend((each, False) for each in inner)


def _inner(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, tuple) and not isinstance(value, Tensor):
        return list(value)
    if isinstance(value, dict):
        return [*value.values(), *(key.value for key in value if isinstance(key, _Keyed))]
    if isinstance(value, Instance):
        return [value.state]
    return [value.arguments] if isinstance(value, Call) else []


def corrupt_pickle(name: str) -> Unprocessable:
    """Return the error for a pickle that torch did not write."""
    return Unprocessable(
        f"The model's {name} is not as torch.jit.save writes it; export the model again.",
        code="corrupt_pickle",
    )


def _too_deep(name: str) -> Unprocessable:
    return Unprocessable(
        f"The objects in the model's {name} hold each other over {MAX_DEPTH} levels deep, or "
        "without end. Make the model flatter.",
        code="pickle_too_deep",
    )


_LITERALS = frozenset({"BINUNICODE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"})
_CONSTANTS: dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_LITERALS_RUN = re.compile(
    rb"(?:[()t\]eR\x85-\x89N]|[Kqh].|M..|[Jrj].{4}|G.{8}|\x8a\x08.{8}"
    rb"|ctorch\.jit\._pickle\nbuild_intlist\n)*",
    re.DOTALL,
)
