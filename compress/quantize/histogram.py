"""A histogram of values that come in batches, in constant memory.

Bins are as wide as a power of two and begin at multiples of their width, so zero is an edge. When
values outgrow the bins, the width doubles and neighbours merge, without any rounding. What comes
out depends on neither the order of batches nor chance.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_BINS = 4096
_SAMPLED = 1 << 18
"""Elements of one call that are counted. The extremes are those of all elements."""
_NARROWEST = -100
"""Exponent of the least bin width: 2**100 is still a float32."""


class StreamingHistogram:
    """Counts of values seen.

    At least half of the bins lie inside the range seen, zero included, which is some 2000 bins: ten
    or more for each step of an 8-bit scale.

    Args:
        counts: Whether anything is counted; else only the extremes are kept.

    Attributes:
        low: Least value seen; 0 before any.
        high: Greatest value seen; 0 before any.
        seen: Whether there was any value.
        zeros: Weight of the values that are exactly zero; they are in a bin, too.
    """

    def __init__(self, *, counts: bool = True) -> None:
        self._counting = counts
        self.low = 0.0
        self.high = 0.0
        self.seen = False
        self.zeros = 0
        self._exponent = _NARROWEST
        self._first = 0
        self._counts = torch.zeros(_BINS, dtype=torch.int64)

    def add(self, values: Tensor) -> None:
        """Take in a tensor of any shape; of those that are not finite, nothing.

        The extremes are found among all elements. Of a large tensor every n-th element is counted,
        n times, where n shares no factor with any of its axes: no row or channel is left out.
        """
        flat = _flat(values.detach())
        if flat.numel() == 0:
            return
        low, high = (float(end) for end in torch.aminmax(flat))
        if not math.isfinite(low) or not math.isfinite(high):
            flat = flat[flat.isfinite()]
            if flat.numel() == 0:
                return
            low, high = (float(end) for end in torch.aminmax(flat))
        self._widen(low, high)
        if self._counting:
            self._count(flat)

    def merge(self, other: StreamingHistogram) -> None:
        """Take in what another histogram has seen, as if the values themselves were added."""
        if not other.seen:
            return
        self._widen(other.low, other.high)
        if self._counting:
            self._fit()
            other._add_to(self._counts, self._exponent, self._first)
            self.zeros += other.zeros

    def _widen(self, low: float, high: float) -> None:
        self.low, self.high = (
            (min(self.low, low), max(self.high, high)) if self.seen else (low, high)
        )
        self.seen = True

    def _count(self, flat: Tensor) -> None:
        self._fit()
        step = _coprime_step(flat.numel())
        sampled = flat[::step].float()
        places = (sampled * 2.0**-self._exponent).floor_().to(torch.int64).sub_(self._first)
        self._counts += torch.bincount(places, minlength=_BINS) * step
        self.zeros += int((sampled == 0).sum()) * step

    def bins(self) -> tuple[Tensor, Tensor]:
        """Return the bins that hold values: their left edges and their weights.

        Returns:
            Edges and weights, both `[bins]` in float64, in order of the edges.
        """
        filled = self._counts.nonzero().flatten()
        edges = (filled + self._first).double() * self.width
        return edges, self._counts[filled].double()

    @property
    def width(self) -> float:
        """Of a bin, in units of the values."""
        return float(2.0**self._exponent)

    def _fit(self) -> None:
        """Widen and move the bins until the range seen, with zero, lies inside."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        exponent = self._exponent
        if high > low:
            exponent = max(exponent, math.frexp((high - low) / _BINS)[1] - 1)
        while math.floor(high * 2.0**-exponent) - math.floor(low * 2.0**-exponent) >= _BINS:
            exponent += 1
        first = math.floor(low * 2.0**-exponent)
        if exponent == self._exponent and first == self._first:
            return
        moved = torch.zeros_like(self._counts)
        self._add_to(moved, exponent, first)
        self._exponent, self._first, self._counts = exponent, first, moved

    def _add_to(self, counts: Tensor, exponent: int, first: int) -> None:
        """Add the counts to others, whose bins are as wide or wider."""
        filled = self._counts.nonzero().flatten()
        merged = (filled + self._first) >> min(exponent - self._exponent, 62)
        counts.index_add_(0, merged - first, self._counts[filled])


def _flat(values: Tensor) -> Tensor:
    """All elements in the order of memory, without a copy where they lie together."""
    for order in (torch.contiguous_format, torch.channels_last, torch.channels_last_3d):
        rank = {torch.channels_last: 4, torch.channels_last_3d: 5}.get(order, values.dim())
        if values.dim() == rank and values.is_contiguous(memory_format=order):
            return torch.as_strided(values, (values.numel(),), (1,), values.storage_offset())
    return values.reshape(-1)


def _coprime_step(elements: int) -> int:
    step = max(1, elements // _SAMPLED)
    while math.gcd(step, elements) > 1:
        step -= 1
    return step
