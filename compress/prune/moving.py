"""How channel numbers move where elements do: reshapes, slices, concatenation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from compress.prune.calls import Call
from compress.prune.classes import Classes


def move(call: Call) -> Any:
    """Run what only moves elements on the numbers themselves, and join what it mixes."""
    classes, name = call.classes, call.name
    rest = call.args[1:]
    given = call.numbers[0]
    if name in ("getitem", "index", "index_select", "roll", "unbind"):
        if not isinstance(given, Tensor):
            return call.function(given, *rest)
        classes.even_out(given, _rearranged(call), f"{name} rearranges its channels")
    moved = call.function(given, *rest, **call.kwargs)
    if name in ("cat", "concat", "stack"):
        axis = call.argument(1, "dim", 0)
        joined = [each for each in classes.varying(moved) if each != axis % moved.dim()]
        if joined or name == "stack":
            classes.join_along(moved, [axis], f"{name} joins it with what has no channels")
    elif name == "pixel_shuffle":
        others = [each for each in classes.varying(moved) if each != moved.dim() - 3]
        classes.join_along(moved, others, "pixel_shuffle mixes its channels")
    elif name in ("reshape", "view", "view_as", "reshape_as", "unflatten"):
        _join_split(classes, given, moved)
    return moved


def _rearranged(call: Call) -> list[int]:
    """Axes whose elements are picked by an index, or by steps: the picks know all channels."""
    rank = call.args[0].dim()
    if call.name == "unbind":
        return [call.argument(1, "dim", 0)]
    if call.name == "index_select":
        return [call.argument(1, "dim")]
    if call.name == "roll":
        axes = call.argument(2, "dims", None)
        return list(range(rank)) if axes is None else [axes] if isinstance(axes, int) else axes
    index = call.args[1]
    items = list(index) if isinstance(index, tuple | list) else [index]
    taken = sum(item is not None or call.name == "index" for item in items if item is not ...)
    axes, axis = [], 0
    for item in items:
        if item is ...:
            axis = rank - (taken - axis)
            continue
        if isinstance(item, Tensor | list) or (
            isinstance(item, slice) and item.step not in (None, 1)
        ):
            axes.append(axis)
        if item is not None or call.name == "index":
            axis += 1
    return axes


def _join_split(classes: Classes, before: Tensor, moved: Tensor) -> None:
    """Where a reshape splits an axis of channels, let one of the new axes stand for them.

    Of heads, `[…, heads, features]`, a whole head is cut; where axes follow the channels, as in a
    shuffle of an image's, `[batch, groups, channels, height, width]`, the same place in each group.
    """
    for old, new in _blocks(before.shape, moved.shape):
        along = [axis for axis in classes.varying(moved) if axis in new]
        if len(along) > 1 and len(classes.varying(before, old)) == 1:
            is_last = old[-1] == before.dim() - 1
            keep = along[-2] if is_last else along[-1]
            others = [axis for axis in along if axis != keep]
            classes.join_along(moved, others, "a reshape mixes its channels")


def _blocks(before: Sequence[int], moved: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Return groups of axes, before and after a reshape, that hold the same elements."""
    groups: list[tuple[list[int], list[int]]] = []
    old = new = 0
    while old < len(before) and new < len(moved):
        mine, other = [old], [new]
        left, right = before[old], moved[new]
        while left != right:
            if left < right and mine[-1] + 1 < len(before):
                mine.append(mine[-1] + 1)
                left *= before[mine[-1]]
            elif other[-1] + 1 < len(moved):
                other.append(other[-1] + 1)
                right *= moved[other[-1]]
            else:
                return groups
        groups.append((mine, other))
        old, new = mine[-1] + 1, other[-1] + 1
    return groups
