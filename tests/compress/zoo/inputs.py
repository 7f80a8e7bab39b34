"""Seeded inputs of the usual kinds, as `entry.Inputs`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tests.compress.zoo.entry import Inputs

Shape = tuple[int | str, ...]
"""Axes: a number, or "batch" or "extent"."""


def seeded(batch: int, extent: int) -> torch.Generator:
    return torch.Generator().manual_seed(1000 * batch + extent)


def _lengths(shape: Shape, batch: int, extent: int) -> list[int]:
    named = {"batch": batch, "extent": extent}
    return [named[axis] if isinstance(axis, str) else axis for axis in shape]


def floats(*shapes: Shape, full: tuple[Shape, ...] | None = None) -> Inputs:
    """Normal values, one tensor a shape; `full` are the shapes at the published size."""

    def make(published: bool, batch: int, extent: int) -> list[Any]:
        generator = seeded(batch, extent)
        wanted = full if published and full is not None else shapes
        return [
            torch.randn(_lengths(shape, batch, extent), generator=generator) for shape in wanted
        ]

    return make


def images() -> Inputs:
    """[batch, 3, side, side]."""
    return floats(("batch", 3, "extent", "extent"))


def draw(high: int, shape: list[int], generator: torch.Generator) -> Tensor:
    """Indices from 1 to `high` - 1: 0 is often padding."""
    return torch.randint(1, high, shape, generator=generator)


def tokens(small: int = 100, full: int = 10000) -> Inputs:
    """[batch, length] under the size of the vocabulary."""

    def make(published: bool, batch: int, extent: int) -> list[Any]:
        return [draw(full if published else small, [batch, extent], seeded(batch, extent))]

    return make


def row_lengths(batch: int, extent: int) -> Tensor:
    """[batch]: the first row fills the extent, the others less of it."""
    return torch.tensor([max(1, extent - row) for row in range(batch)])


def masked(
    small: int = 100, full: int = 30522, mask: Callable[[Tensor], Tensor] = Tensor.long
) -> Inputs:
    """Tokens, and which of them are real; `mask` turns the flags into what the model takes."""
    plain = tokens(small, full)

    def make(published: bool, batch: int, extent: int) -> list[Any]:
        [ids] = plain(published, batch, extent)
        real = torch.arange(extent)[None, :] < row_lengths(batch, extent)[:, None]
        return [ids * real, mask(real)]

    return make
