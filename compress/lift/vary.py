"""Inputs like the example's, of other sizes: to see which sizes are free."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.structure import map_tensors, tensors_in

_MOST_CHOICES = 16


@dataclass(frozen=True)
class Axes:
    """Axes that have one length and vary together: `(tensor, axis)` pairs, tensors in order."""

    length: int
    members: tuple[tuple[int, int], ...]


class Sizes:
    """The axes of some inputs.

    Args:
        inputs: The example, one entry for each argument.
        fixed: `(tensor, axis)` pairs that must not vary.
    """

    def __init__(self, inputs: Sequence[Any], fixed: Collection[tuple[int, int]] = ()) -> None:
        self._lengths = {
            (index, axis): length
            for index, value in enumerate(tensors_in(list(inputs)))
            for axis, length in enumerate(value.shape)
            if (index, axis) not in fixed
        }

    def batch(self) -> Axes | None:
        """The first axis of all tensors, if they share its length."""
        first = [member for member in self._lengths if member[1] == 0]
        every = {index for index, _ in self._lengths} == {index for index, _ in first}
        return self._only(first) if every else None

    def others(self) -> list[Axes]:
        """All other axes, those of one length together; those of length 1 broadcast."""
        taken = self.batch()
        found: dict[int, list[tuple[int, int]]] = {}
        for member, length in self._lengths.items():
            if length > 1 and (taken is None or member[1] > 0):
                found.setdefault(length, []).append(member)
        return [Axes(length, tuple(members)) for length, members in found.items()]

    def of_length(self, length: int) -> Axes | None:
        """All axes of one length, first axes too."""
        return self._only([member for member, own in self._lengths.items() if own == length])

    def _only(self, members: list[tuple[int, int]]) -> Axes | None:
        lengths = {self._lengths[member] for member in members}
        return Axes(lengths.pop(), tuple(members)) if len(lengths) == 1 else None


def parts_of(axes: Axes) -> Iterator[Axes]:
    """Yield the axes; then, since lengths may be equal by chance, one axis of each tensor."""
    yield axes
    by_tensor: dict[int, list[tuple[int, int]]] = {}
    for member in axes.members:
        by_tensor.setdefault(member[0], []).append(member)
    choices = itertools.islice(itertools.product(*by_tensor.values()), _MOST_CHOICES)
    for members in choices:
        if members != axes.members:
            yield Axes(axes.length, members)
    for member in axes.members[:_MOST_CHOICES] if len(by_tensor) > 1 else ():
        yield Axes(axes.length, (member,))


def other_batch_sizes(length: int) -> list[int]:
    """Two small sizes unlike the example's."""
    return [size for size in (2, 3, 1) if size != length][:2]


def shorter(length: int) -> int:
    """About half: nets halve images, so a multiple of 32 stays one, and an even length even."""
    for step in (32, 2):
        if length % step == 0 and length > step:
            return max(step, length // 2 // step * step)
    return max(1, length // 2)


def resized(
    inputs: Sequence[Any], lengths: Sequence[tuple[Axes, int]], seed: int
) -> Iterator[list[Any]]:
    """Yield inputs like the example's with these axes at other lengths, the best guess first.

    Floats are random and spread alike. Integers, which may be indices, flags or lengths, are drawn
    from the example; then, in case their order matters, taken from it in order; then, in case they
    count along an axis or point into it, kept within its length.
    """
    wanted = {member: length for axes, length in lengths for member in axes.members}
    bound = min((length for axes, length in lengths), default=0)
    whole = [value for value in tensors_in(list(inputs)) if not value.is_floating_point()]
    for draw, most in ((True, None), (False, None), (False, bound), (True, bound - 1)):
        yield _resize(inputs, wanted, seed, draw=draw, most=most)
        if not whole:
            return


def _resize(
    inputs: Sequence[Any],
    wanted: dict[tuple[int, int], int],
    seed: int,
    *,
    draw: bool,
    most: int | None,
) -> list[Any]:
    generator = torch.Generator().manual_seed(seed)
    index = -1

    def change(example: Tensor) -> Tensor:
        nonlocal index
        index += 1
        shape = [wanted.get((index, axis), length) for axis, length in enumerate(example.shape)]
        if example.is_floating_point():
            return _noise(example, shape, generator)
        if example.numel() == 0:
            return example.new_zeros(shape)
        if draw:
            chosen = torch.randint(0, example.numel(), shape, generator=generator)
            return _bounded(example.flatten()[chosen], most)
        for axis, length in enumerate(shape):
            rows = torch.arange(length) * example.shape[axis] // length
            shortened = torch.arange(length)
            keep = axis > 0 and length <= example.shape[axis]
            example = example.index_select(axis, shortened if keep else rows)
        return _bounded(example, most)

    return [map_tensors(value, change) for value in inputs]


def _bounded(value: Tensor, most: int | None) -> Tensor:
    return value if most is None or value.dtype == torch.bool else value.clamp(max=most)


def _noise(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    spread, centre = float(example.std(correction=0)), float(example.mean())
    noise = torch.randn(list(shape), generator=generator)
    return (noise * (spread or 1.0) + centre).to(example.dtype)
