"""Which channels are cut: the same share of each pool of channels that can stand for each other."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from compress.prune.classes import NOBODY, axis_masks, compact
from compress.prune.tracing import Traced

_BLOCK = 8
"""Processors take channels by so many at once."""
_NO_BLOCK = "what would be left of a tensor that it is in is no block of it"


@dataclass(frozen=True)
class Pool:
    """Classes that have equally many channels in the same layers' outputs.

    Attributes:
        classes: `[n]`.
        width: Channels of one class in the layer that has fewest of them.
    """

    classes: Tensor
    width: int


class Kept:
    """Which classes are kept; called with numbers, which of them are, as bool."""

    def __init__(self, traced: Traced, cut: Tensor) -> None:
        self._classes = traced.classes
        self._mask = torch.ones(len(traced.classes), dtype=torch.bool)
        self._mask[cut] = False

    def __call__(self, numbers: Tensor) -> Tensor:
        return self._mask[compact(self._classes.of(numbers))].expand(numbers.shape)


def choose(traced: Traced, scores: Tensor, share: float) -> Kept:
    """Choose what is kept; what could not be cut by itself is held, so that a reason is known.

    Args:
        traced: Where channels are.
        scores: Of each class, `[classes]`; the lowest go first.
        share: Of channels to cut.
    """
    while True:
        cut = [_lowest(pool, scores, share) for pool in _pools(traced)]
        kept = Kept(traced, torch.cat(cut) if cut else torch.zeros(0, dtype=torch.int64))
        broken = [
            numbers[~kept(numbers)] for numbers in map(compact, traced.sites())
            if not _is_block(kept(numbers))
        ]  # fmt: skip
        if not broken:
            return kept
        for numbers in broken:
            traced.classes.hold(numbers, _NO_BLOCK)


def _is_block(mask: Tensor) -> bool:
    if mask.all():
        return True
    masks = axis_masks(mask)
    return masks is not None and all(each.any() for each in masks)


def _lowest(pool: Pool, scores: Tensor, share: float) -> Tensor:
    count = len(pool.classes)
    kept = _count_kept(count, pool.width, share)
    return pool.classes[scores[pool.classes].argsort(stable=True)[: count - kept]]


def _count_kept(count: int, width: int, share: float) -> int:
    """Round what is kept to whole blocks, where there is more than one."""
    step = _BLOCK // math.gcd(_BLOCK, width)
    if count <= step:
        step = 1
    return min(count, max(step, round(count * (1 - share) / step) * step))


def _pools(traced: Traced) -> list[Pool]:
    classes = traced.classes
    held = classes.held()
    channels: dict[int, list[tuple[str, int]]] = defaultdict(list)
    for name, made in traced.makers.items():
        for each, count in _counted(classes.of(made)):
            channels[each].append((name, count))
    pools: dict[tuple[tuple[str, int], ...], list[int]] = defaultdict(list)
    for each, places in sorted(channels.items()):
        if each != NOBODY and each not in held:
            pools[tuple(places)].append(each)
    return [
        Pool(torch.tensor(found), min(count for _, count in places))
        for places, found in pools.items()
    ]


def _counted(classes: Tensor) -> Iterator[tuple[int, int]]:
    values, counts = torch.unique(classes, return_counts=True)
    return zip(values.tolist(), counts.tolist(), strict=True)
