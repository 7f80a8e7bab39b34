"""Names of a dataset's arrays, and the places in forward's arguments that they stand for.

`input_1` is argument 1; `input_1.mask.0` is what lies under `mask` and then under 0 inside it.
`input` is another name of `input_0`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

MAX_ARRAYS = 1000
_MAX_DEPTH = 8
_NAME = re.compile(r"input(?:_(0|[1-9]\d{0,3}))?((?:\.[A-Za-z0-9_-]{1,100})*)")
_INDEX = re.compile(r"0|[1-9]\d{0,3}")

MisfitCode = Literal[
    "unknown_array", "duplicate_array", "invalid_dataset", "shape_mismatch", "bad_signature"
]


class Misfit(ValueError):
    """Arrays that fit neither each other nor forward.

    Attributes:
        code: Stable, as in the HTTP API.
        detail: What is wrong and what to do.
        name: The array or argument at fault; empty where it is none alone.
    """

    def __init__(self, code: MisfitCode, detail: str, name: str = "") -> None:
        super().__init__(detail)
        self.code: MisfitCode = code
        self.detail = detail
        self.name = name


@dataclass(frozen=True)
class Place:
    """Where a value goes: the argument's index, and the keys inside it."""

    argument: int
    path: tuple[str, ...] = ()

    @property
    def rank(self) -> tuple[Any, ...]:
        """Sorts by argument, then by key: numbers by size, before words."""
        keys = [(0, int(key), "") if is_index(key) else (1, 0, key) for key in self.path]
        return (self.argument, keys)


def is_index(key: str) -> bool:
    """Whether a key may be an index into a list."""
    return _INDEX.fullmatch(key) is not None


def read_name(name: str) -> Place | None:
    """Return the place that an array's name stands for, or None for another name."""
    match = _NAME.fullmatch(name)
    if match is None:
        return None
    path = tuple(match[2].split(".")[1:])
    return Place(int(match[1] or 0), path) if len(path) <= _MAX_DEPTH else None


def is_bare(name: str) -> bool:
    """Whether a name is `input` or `input.key`, without a number."""
    return not name.startswith("input_")


def order_names(names: Iterable[str]) -> list[str]:
    """Return the names of input arrays in the order of their places.

    Raises:
        Misfit: `unknown_array`, `duplicate_array` or, where there are too many, `invalid_dataset`.
    """
    places: dict[str, Place] = {}
    for name in names:
        place = read_name(name)
        if place is None:
            raise Misfit("unknown_array", f"The array {name!a} has no meaning here.", name)
        places[name] = place
    if len(places) > MAX_ARRAYS:
        raise Misfit("invalid_dataset", f"There are more than {MAX_ARRAYS} arrays.")
    bare = [name for name in places if is_bare(name)]
    if bare and len(bare) < len(places):
        raise Misfit(
            "duplicate_array",
            f"There is `{bare[0]}` and also `input_0` or the like: use either one or the other.",
            bare[0],
        )
    check_apart(places)
    return sorted(places, key=lambda name: places[name].rank)


def check_apart(places: Mapping[str, Place]) -> None:
    """Raise Misfit `duplicate_array` where one place is another's, or part of it."""
    taken: dict[Place, str] = {}
    for name, place in places.items():
        other = taken.setdefault(place, name)
        if other != name:
            raise Misfit("duplicate_array", f"`{other}` and `{name}` are one and the same.", name)
    for name, place in places.items():
        for depth in range(len(place.path)):
            above = taken.get(Place(place.argument, place.path[:depth]))
            if above is not None:
                raise Misfit(
                    "duplicate_array",
                    f"There is `{above}` and also `{name}`, which would be part of it: use either "
                    "one or the other.",
                    above,
                )
