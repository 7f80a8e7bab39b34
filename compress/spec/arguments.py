"""How arrays become the arguments of forward.

An argument takes one array for each tensor or number inside it: `input_1` for a Tensor or an int,
`input_1.0` and `input_1.1` for a Tuple or List, `input_1.mask` for a Dict or NamedTuple, and deeper
`input_1.mask.0`. Free of torch: the API refuses by the same rules that the engine binds by.
"""

from __future__ import annotations

import re
from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from typing import Any

from compress.spec.names import Misfit, Place, check_apart, is_bare, is_index, read_name
from compress.spec.types import Kind, LeafForm, is_leaf, read_type

_NUMBER = re.compile(r"0|-?[1-9]\d{0,17}")
_MAX_TOLD = 12
_DTYPES = {"int": ("int", "uint"), "float": ("float", "int", "uint"), "bool": ("bool",)}


@dataclass(frozen=True, kw_only=True)
class ForwardArgument:
    """One argument of forward, without `self`.

    Attributes:
        name: Its name in the code.
        type: As TorchScript prints it.
        has_default: Whether a call may leave it out.
        default: What it is then, as far as known.
        fields: Fields of the named tuples in `type`: full name to field to type.
    """

    name: str
    type: str
    has_default: bool
    default: Any = None
    fields: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    @cached_property
    def kind(self) -> Kind:
        """The type, read."""
        return read_type(self.type, self.fields)

    @property
    def is_required(self) -> bool:
        """Whether something must be given for it; an Optional may be None."""
        return not self.has_default and not self.kind.is_optional


@dataclass(frozen=True)
class Slot:
    """A place in the arguments that one array, or a number from it, is put into.

    Attributes:
        name: The array's name.
        type: `Tensor`, or the Python number that the model's code takes.
        argument: Name of the argument it is part of.
    """

    name: str
    type: LeafForm
    argument: str


@dataclass(frozen=True)
class _Group:
    """A container around slots."""

    kind: Kind
    keys: tuple[str | int, ...]
    items: tuple[Any, ...]

    def make(self, items: list[Any]) -> Any:
        if self.kind.form == "list":
            return items
        if self.kind.form == "dict":
            return dict(zip(self.keys, items, strict=True))
        if not self.kind.class_name:
            return tuple(items)
        return _named(self.kind.class_name, self.kind.keys)(*items)


@dataclass(frozen=True)
class Layout:
    """The arguments of a call, with slots where values go.

    Attributes:
        slots: All slots, in order.
    """

    slots: tuple[Slot, ...]
    _entries: tuple[Any, ...]

    def fill(self, value_of: Callable[[Slot], Any]) -> list[Any]:
        """Return one entry per argument, each slot replaced by `value_of(slot)`.

        Arguments after the last that is given or has no default are left out.
        """

        def filled(entry: Any) -> Any:
            if isinstance(entry, Slot):
                return value_of(entry)
            if isinstance(entry, _Group):
                return entry.make([filled(item) for item in entry.items])
            return entry

        return [filled(entry) for entry in self._entries]


def check_signature(arguments: Sequence[ForwardArgument]) -> None:
    """Raise Misfit `bad_signature` where forward cannot be called, whatever the arrays."""
    if not arguments:
        raise Misfit(
            "bad_signature",
            "The model's forward takes no input, so there is nothing to run it on.",
        )
    for argument in arguments:
        if argument.is_required and not argument.kind.can_be_given:
            raise _ungivable(argument)


def bind_arrays(arguments: Sequence[ForwardArgument], names: Sequence[str]) -> Layout:
    """Match the input arrays of a dataset to forward's arguments.

    An argument that no array is given for is its default, or None where it is Optional.

    Raises:
        Misfit: `shape_mismatch` for arrays that are missing, too many or nested otherwise, and
            `bad_signature` for an argument that no array can be given for.
    """
    places = {name: read_name(name) or Place(len(arguments)) for name in names}
    labels = [f"input_{index}" for index in range(len(arguments))]
    if labels and any(is_bare(name) for name in names):
        labels[0] = "input"
    return bind(arguments, places, labels)


def check_number(slot: Slot, dtype: str, shape: Sequence[int]) -> None:
    """Check an array `[samples]` that a Python number is read from; a tensor may be any array.

    Raises:
        Misfit: `shape_mismatch`.
    """
    if slot.type == "Tensor" or (len(shape) == 1 and dtype.startswith(_DTYPES[slot.type])):
        return
    raise Misfit(
        "shape_mismatch",
        f"Argument '{slot.argument}' of forward takes a Python {slot.type} from {slot.name}, which "
        f"must be of shape [samples] and {' or '.join(_DTYPES[slot.type])}; it is "
        f"{list(shape)} {dtype}.",
        slot.name,
    )


def bind(
    arguments: Sequence[ForwardArgument], places: Mapping[str, Place], labels: Sequence[str]
) -> Layout:
    """Match named places to forward's arguments.

    Args:
        arguments: Of forward.
        places: Name of what is given to its place.
        labels: What to call each argument's place in messages.

    Raises:
        Misfit: As `bind_arrays`; `duplicate_array` for one place given twice.
    """
    check_apart(places)
    trees: list[Any] = [None] * len(arguments)
    for name, place in sorted(places.items(), key=lambda item: item[1].rank):
        if place.argument >= len(arguments):
            raise _miscounted(arguments, places, f"there is no argument for {name}", name)
        trees[place.argument] = _graft(trees[place.argument], place.path, name)
    binder = _Binder()
    entries: list[Any] = []
    for argument, tree, label in zip(arguments, trees, labels, strict=True):
        if tree is not None:
            entries.append(binder.fit(argument, argument.kind, tree, label))
        elif not argument.is_required:
            entries.append(argument.default)
        elif not argument.kind.can_be_given:
            raise _ungivable(argument)
        else:
            wanted = _told(_wanted(argument.kind, label), " and ")
            fault = f"argument '{argument.name}' takes {wanted}"
            raise _miscounted(arguments, places, fault, label)
    while entries and trees[len(entries) - 1] is None and arguments[len(entries) - 1].has_default:
        entries.pop()
    return Layout(tuple(binder.slots), tuple(entries))


def _graft(tree: Any, path: tuple[str, ...], name: str) -> Any:
    """Return a tree of names with one more leaf."""
    if not path:
        return name
    branches = dict(tree or {})
    branches[path[0]] = _graft(branches.get(path[0]), path[1:], name)
    return branches


class _Binder:
    """Fits trees of names into types."""

    def __init__(self) -> None:
        self.slots: list[Slot] = []

    def fit(self, argument: ForwardArgument, kind: Kind, tree: Any, label: str) -> Any:
        """Return a slot, or a group of them; `label` is the tree's own name."""
        if not kind.can_be_given:
            raise _ungivable(argument)
        if is_leaf(kind.form):
            if isinstance(tree, dict):
                raise _nested_otherwise(argument, kind, tree, label)
            self.slots.append(Slot(tree, kind.form, argument.name))
            return self.slots[-1]
        if not isinstance(tree, dict):
            raise _nested_otherwise(argument, kind, tree, label)
        keys = _keys(kind, tree)
        if keys is None:
            raise _nested_otherwise(argument, kind, tree, label)
        types = kind.items if kind.form == "tuple" else kind.items * len(keys)
        items = []
        for key, item in zip(keys, types, strict=True):
            below = tree.get(str(key))
            if below is None and not item.is_optional:
                raise _nested_otherwise(argument, kind, tree, label)
            items.append(
                None if below is None else self.fit(argument, item, below, f"{label}.{key}")
            )
        return _Group(kind, tuple(keys), tuple(items))


def _keys(kind: Kind, tree: Mapping[str, Any]) -> Sequence[str | int] | None:
    """Return the keys of a container; None where some of the names have no place in it."""
    if kind.form == "tuple":
        return kind.keys if set(tree) <= set(kind.keys) else None
    if kind.form == "list":
        return range(max(map(int, tree)) + 1) if all(map(is_index, tree)) else None
    if kind.keys == ("int",):
        return [int(key) for key in tree] if all(map(_NUMBER.fullmatch, tree)) else None
    return list(tree)


@lru_cache(maxsize=1000)
def _named(class_name: str, fields: tuple[str, ...]) -> Any:
    return namedtuple(class_name.rpartition(".")[2], fields, rename=True)


def _wanted(kind: Kind, label: str) -> list[str]:
    """Names of the arrays that go into a type."""
    if kind.form == "tuple":
        return [
            name
            for key, item in zip(kind.keys, kind.items, strict=True)
            for name in _wanted(item, f"{label}.{key}")
        ]
    if kind.form == "list":
        return [*_wanted(kind.items[0], f"{label}.0"), "so on"]
    if kind.form == "dict":
        key = "KEY" if kind.keys == ("str",) else "NUMBER"
        return _wanted(kind.items[0], f"{label}.{key}")
    return [label]


def _leaves(tree: Any) -> list[str]:
    if isinstance(tree, dict):
        return [name for below in tree.values() for name in _leaves(below)]
    return [tree]


def _nested_otherwise(argument: ForwardArgument, kind: Kind, tree: Any, label: str) -> Misfit:
    given = _leaves(tree)
    inside = "" if kind == argument.kind else f", with {kind.text} inside"
    return Misfit(
        "shape_mismatch",
        f"Argument '{argument.name}' of forward is of type {argument.type}{inside}: it takes "
        f"{_told(_wanted(kind, label), ' and ')}, but {_told(given)} "
        f"{'is' if len(given) == 1 else 'are'} given.",
        given[0],
    )


def _miscounted(
    arguments: Sequence[ForwardArgument], given: Iterable[str], fault: str, name: str
) -> Misfit:
    needed = sum(argument.is_required for argument in arguments)
    count = f"{needed}" if needed == len(arguments) else f"{needed} to {len(arguments)}"
    names = list(given)
    return Misfit(
        "shape_mismatch",
        f"forward takes {count} inputs ({_told([a.name for a in arguments]) or 'none'}), but "
        f"{_told(names) or 'nothing'} {'is' if len(names) < 2 else 'are'} given: {fault}.",
        name,
    )


def _ungivable(argument: ForwardArgument) -> Misfit:
    return Misfit(
        "bad_signature",
        f"Argument '{argument.name}' of forward is of type {argument.type}; only tensors, numbers, "
        "and tuples, lists or dicts of them can be given. Give it a default, or wrap the model.",
        argument.name,
    )


def _told(names: Sequence[str], last: str = ", ") -> str:
    if len(names) > _MAX_TOLD:
        return ", ".join([*names[:_MAX_TOLD], "…"])
    return last.join(filter(None, [", ".join(names[:-1]), *names[-1:]]))
