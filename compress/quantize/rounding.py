"""Weights to integers: which scale, which zero point, and what rounding to them costs.

A row is what shares one scale: an output channel, a group of its weights, or a whole tensor. A
range that leaves the outermost weights out may cost less than the finer steps gain, most of all
with four bits, so ranges are searched for the least squared error (Banner et al. 2019, "Post
training 4-bit quantization of convolutional networks for rapid-deployment", section 3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_SHRINKS_INT8 = tuple(1.0 - 0.02 * step for step in range(11))
_SHRINKS_INT4 = tuple(1.0 - 0.03 * step for step in range(17))
_MAX_PAIR = 128
"""Largest sum of two neighbours' magnitudes: 255 * 128 < 2**15."""
_SCALE_BITS = 7
"""Of a four-bit scale; 15 * scale is then a float16, as the packed row stores it."""
_ELEMENTS_AT_ONCE = 1 << 17
"""What the caches hold while every range is tried: four times as fast as all at once."""


@dataclass(frozen=True)
class Integers:
    """Rows of integers; `(values - zero_point) * scale` is what they stand for.

    Attributes:
        values: `[rows, length]`, int8 where symmetric, else uint8.
        scale: `[rows]`, float32.
        zero_point: `[rows]`, int64; 0 where symmetric.
    """

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    def dequantize(self) -> Tensor:
        """Return `[rows, length]` in float32."""
        centred = self.values.to(torch.int16) - self.zero_point[:, None].to(torch.int16)
        return centred.float() * self.scale[:, None]


def round_int8(rows: Tensor) -> Integers:
    """Round to -127..127 around 0, each row at the scale of least squared error.

    Args:
        rows: `[rows, length]`, float32.
    """
    return _in_parts(rows, _round_int8)


def _round_int8(rows: Tensor) -> Integers:
    span = rows.abs().amax(1)
    best: Integers | None = None
    for shrink in _SHRINKS_INT8:
        scale = _nonzero(span * (shrink / 127))
        values = (rows / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
        best = _better(rows, best, Integers(values, scale, torch.zeros_like(scale).long()))
    assert best is not None
    return best


def round_int4(rows: Tensor) -> Integers:
    """Round to 0..15 with a zero point, each row at the range of least squared error.

    Ranges around 0 and from least to largest are both tried. Scales keep few bits: packed rows
    store them and their products with the zero point in float16, exactly.

    Args:
        rows: `[rows, length]`, float32.
    """
    return _in_parts(rows, _round_int4)


def _round_int4(rows: Tensor) -> Integers:
    low, high = rows.amin(1).clamp(max=0), rows.amax(1).clamp(min=0)
    span = torch.maximum(-low, high)
    best: Integers | None = None
    for shrink in _SHRINKS_INT4:
        for bottom, top in ((low, high), (-span * (8 / 7), span)):
            scale = _few_bits(_nonzero((top - bottom) * (shrink / 15)))
            zero_point = (-bottom * shrink / scale).round_().clamp_(0, 15)
            values = (rows / scale[:, None]).round_().add_(zero_point[:, None]).clamp_(0, 15)
            tried = Integers(values.to(torch.uint8), scale, zero_point.long())
            best = _better(rows, best, tried)
    assert best is not None
    return best


def round_without_overflow(weight: Tensor, *, per_channel: bool) -> Integers:
    """Round to int8 such that no x86 processor's products with full 8-bit activations overflow.

    Without VNNI, `vpmaddubsw` adds the products of two neighbours in 16 bits and saturates. torch's
    way out is to leave one of the activations' eight bits unused. Weights have slack instead: two
    neighbours are seldom both large and of one sign. Where they are, both give way a little, or
    the channel's scale grows, whichever errs less.

    Args:
        weight: `[out, in]`, float32.
        per_channel: A scale for each output channel; else one for all.

    Returns:
        Rows are output channels in either case. Of two values at 2i and 2i + 1, those that are
        positive sum to 128 at most, and those that are negative to -128 at least.
    """
    return _in_parts(weight, _round_pairs) if per_channel else _round_pairs(weight, shared=True)


def _round_pairs(weight: Tensor, *, shared: bool = False) -> Integers:
    span = weight.abs().amax(1)
    sums = torch.maximum(_pair_sums(weight.clamp(min=0)), _pair_sums((-weight).clamp(min=0)))
    least, most = span / 127, torch.maximum(span / 127, sums / (_MAX_PAIR - 0.5))
    if shared:
        least, most = least.max().expand_as(least), most.max().expand_as(most)
    best: Integers | None = None
    for share in (-0.2, -0.1, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0):
        # below 0, the outermost weights are cut off
        grown = least * (1 + share) if share < 0 else least + (most - least) * share
        scale = _nonzero(grown)
        values = _give_way((weight / scale[:, None]).round_().clamp_(-127, 127))
        tried = Integers(values.to(torch.int8), scale, torch.zeros_like(scale).long())
        best = _better(weight, best, tried, shared=shared)
    assert best is not None
    return best


def _give_way(values: Tensor) -> Tensor:
    """Shrink pairs whose positive or negative parts sum beyond the bound, each member alike."""
    rows, length = values.shape
    paired = torch.nn.functional.pad(values, (0, length % 2)).view(rows, -1, 2)
    excess = (paired.sum(-1).abs() - _MAX_PAIR).clamp_(min=0)
    # of two signs they never go beyond: each is 127 at most
    first = torch.minimum((excess / 2).ceil(), paired[..., 0].abs())
    cut = torch.stack([first, excess - first], dim=-1)
    return (paired - paired.sign() * cut).view(rows, -1)[:, :length]


def _pair_sums(positive: Tensor) -> Tensor:
    """Return the largest sum of values 2i and 2i + 1 in each row."""
    padded = torch.nn.functional.pad(positive, (0, positive.shape[1] % 2))
    return padded.view(positive.shape[0], -1, 2).sum(-1).amax(1)


def _better(
    rows: Tensor, best: Integers | None, tried: Integers, *, shared: bool = False
) -> Integers:
    """Take from each of two roundings the rows that err less; of all together where shared."""
    if best is None:
        return tried
    errors = [(one.dequantize() - rows).square_().sum(1) for one in (best, tried)]
    if shared:
        return tried if errors[1].sum() < errors[0].sum() else best
    wins = errors[1] < errors[0]
    return Integers(
        torch.where(wins[:, None], tried.values, best.values),
        torch.where(wins, tried.scale, best.scale),
        torch.where(wins, tried.zero_point, best.zero_point),
    )


def _in_parts(rows: Tensor, round_rows: Callable[[Tensor], Integers]) -> Integers:
    """Round large tensors a part at a time: a search goes over what it rounds again and again."""
    count = max(1, _ELEMENTS_AT_ONCE // max(1, rows.shape[1]))
    parts = [round_rows(part) for part in torch.split(rows, count)]
    return Integers(
        torch.cat([part.values for part in parts]),
        torch.cat([part.scale for part in parts]),
        torch.cat([part.zero_point for part in parts]),
    )


def _nonzero(scale: Tensor) -> Tensor:
    """Rows of nothing but zeros keep a scale that divides."""
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def _few_bits(scale: Tensor) -> Tensor:
    mantissa, exponent = torch.frexp(scale)
    return torch.ldexp((mantissa * 2**_SCALE_BITS).round_() / 2**_SCALE_BITS, exponent)
