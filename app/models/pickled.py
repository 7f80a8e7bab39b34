"""What a pickle of TorchScript may hold, and what of it is kept.

A global is only its name, an object only its class name and its attributes, and a tensor only what
is known of it. What is not on the lists here is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from app.errors import Unprocessable

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


class Keyed:
    """A key that is no plain value; told apart by identity."""

    def __init__(self, value: Any) -> None:
        self.value = value


def read_name(text: str) -> Name:
    """Return a global, if it is one of those that models need.

    Raises:
        Unprocessable: `class_not_allowed`, `forbidden_global`.
    """
    if text.replace(" ", ".").startswith(_TORCHBIND):
        raise class_not_allowed(text.replace(" ", "."))
    if text == _REBUILD or text in _PLAIN_CALLS or text in ITEM_BYTES or _CLASS.fullmatch(text):
        return Name(text)
    raise Unprocessable(
        f"The model's pickle names {text[:100]!a}, which is not on the list of what models need. "
        "Save the model with torch.jit.save; keep weights dense and not quantized.",
        code="forbidden_global",
    )


def reduce(function: str, arguments: Any) -> Call | Tensor:
    """Return what stands for a call.

    Raises:
        ValueError, TypeError, AttributeError: torch's pickler does not write such a one.
    """
    if function == _REBUILD:
        return _tensor(arguments)
    if not function.startswith("__torch__") and function not in _PLAIN_CALLS:
        raise ValueError("calls what is no function")
    return Call(function, expect(arguments, tuple))


def read_storage(pid: Any) -> Storage:
    """Return the storage that a persistent id names.

    Raises:
        ValueError, TypeError, KeyError, AttributeError: torch's pickler does not write such a one.
    """
    kind, dtype, key, _device, numel = expect(pid, tuple)
    if kind != "storage" or type(numel) is not int or numel < 0:
        raise ValueError("no storage")
    return Storage(expect(key, str), numel, ITEM_BYTES[dtype.text])


def expect(value: Any, kind: type[Any]) -> Any:
    """Return the value, of that very type.

    Raises:
        TypeError: it is of another.
    """
    if type(value) is not kind:
        raise TypeError(f"no {kind.__name__}")
    return value


def check_depth(root: Any, name: str) -> None:
    """Refuse what torch, which recurses, would need too much stack for; cycles too.

    Raises:
        Unprocessable: `pickle_too_deep`.
    """
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


def class_not_allowed(name: str) -> Unprocessable:
    """Return the error for a class whose methods are C++."""
    return Unprocessable(
        f"The model holds an object of {name[:100]!a}, a class of C++ code; quantized layers have "
        "such. Upload the float model that it was made from.",
        code="class_not_allowed",
    )


def corrupt_pickle(name: str) -> Unprocessable:
    """Return the error for a pickle that torch did not write."""
    return Unprocessable(
        f"The model's {name} is not as torch.jit.save writes it; export the model again.",
        code="corrupt_pickle",
    )


def _tensor(arguments: Any) -> Tensor:
    storage, offset, shape, strides, _requires_grad, hooks, *metadata = expect(arguments, tuple)
    if not isinstance(storage, Storage) or hooks.arguments != () or len(metadata) > 1:
        raise ValueError("no tensor")
    if any(type(bit) is not bool for bits in metadata for bit in expect(bits, dict).values()):
        raise ValueError("no metadata")
    for sizes in (shape, strides, (offset,)):
        if not all(type(size) is int and size >= 0 for size in expect(sizes, tuple)):
            raise ValueError("sizes that are none")
    if len(shape) != len(strides):
        raise ValueError("shape and strides do not fit")
    return Tensor(storage, offset, shape, strides)


def _inner(value: Any) -> list[Any]:
    if isinstance(value, list):
        return value
    if isinstance(value, tuple) and not isinstance(value, Tensor):
        return list(value)
    if isinstance(value, dict):
        return [*value.values(), *(key.value for key in value if isinstance(key, Keyed))]
    if isinstance(value, Instance):
        return [value.state]
    return [value.arguments] if isinstance(value, Call) else []


def _too_deep(name: str) -> Unprocessable:
    return Unprocessable(
        f"The objects in the model's {name} hold each other over {MAX_DEPTH} levels deep, or "
        "without end. Make the model flatter.",
        code="pickle_too_deep",
    )
