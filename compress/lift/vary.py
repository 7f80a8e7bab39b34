"""Inputs like the example's, of other sizes: to see which sizes are free."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.structure import map_tensors, tensors_in


@dataclass(frozen=True)
class Axes:
    """Axes that have one length and vary together: `(tensor, axis)` pairs, tensors in order."""

    length: int
    members: tuple[tuple[int, int], ...]


def batch_axes(inputs: Sequence[Any]) -> Axes | None:
    """The first axis of all inputs, if they share its length."""
    tensors = [value for value in tensors_in(list(inputs)) if value.dim()]
    lengths = {value.shape[0] for value in tensors}
    if len(lengths) != 1:
        return None
    members = [(i, 0) for i, value in enumerate(tensors_in(list(inputs))) if value.dim()]
    return Axes(lengths.pop(), tuple(members))


def other_axes(inputs: Sequence[Any]) -> list[Axes]:
    """All other axes, those of one length together."""
    taken = batch_axes(inputs)
    found: dict[int, list[tuple[int, int]]] = {}
    for index, value in enumerate(tensors_in(list(inputs))):
        for axis, length in enumerate(value.shape):
            if length > 1 and (taken is None or axis > 0):
                found.setdefault(length, []).append((index, axis))
    return [Axes(length, tuple(members)) for length, members in found.items()]


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
    count along an axis, kept within its length.
    """
    wanted = {member: length for axes, length in lengths for member in axes.members}
    bound = min((length for axes, length in lengths), default=0)
    whole = [value for value in tensors_in(list(inputs)) if not value.is_floating_point()]
    for draw, most in ((True, None), (False, None), (False, bound)):
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
            return example.flatten()[chosen]
        for axis, length in enumerate(shape):
            rows = torch.arange(length) * example.shape[axis] // length
            shortened = torch.arange(length)
            keep = axis > 0 and length <= example.shape[axis]
            example = example.index_select(axis, shortened if keep else rows)
        if most is not None and example.dtype != torch.bool:
            example = example.clamp(max=most)
        return example

    return [map_tensors(value, change) for value in inputs]


def _noise(example: Tensor, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    spread, centre = float(example.std(correction=0)), float(example.mean())
    noise = torch.randn(list(shape), generator=generator)
    return (noise * (spread or 1.0) + centre).to(example.dtype)
