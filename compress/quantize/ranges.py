"""From a histogram of activations to the range that int8 steps are spread over.

All of them return `(low, high)` with `low <= 0 <= high`: the scale is affine, its zero exact. With
`levels` integers, the step is `(high - low) / (levels - 1)`; what lies outside is clipped.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from compress.quantize.histogram import StreamingHistogram
from compress.spec import Observer

_COARSE = 64
"""Candidates for each end, in the first round of a search."""


def find_range(
    histogram: StreamingHistogram, observer: Observer, percentile: float, levels: int
) -> tuple[float, float]:
    """Return the range that an observer, of those that a request may name, picks."""
    if observer == "minmax" or not histogram.seen:
        return _ends(histogram)
    if observer == "percentile":
        return within_percentile(histogram, percentile)
    search = {
        "histogram": least_expected_error,
        "mse": least_squared_error,
        "entropy": least_divergence,
    }
    return search[observer](histogram, levels)


def within_percentile(histogram: StreamingHistogram, percentile: float) -> tuple[float, float]:
    """Leave out the outermost values, so that `percentile` % of all lie inside.

    Signed values lose at most `(100 - percentile) / 2` % at either end; where all are of one sign,
    as behind a relu, the end away from zero loses all of it. Ends lie on edges of bins, outwards.

    Source: Wu et al. 2020, Integer Quantization for Deep Learning Inference, section 3.3, there
    for magnitudes.
    """
    low, high = _ends(histogram)
    edges, weights = histogram.bins()
    outside = float(weights.sum()) * (1 - percentile / 100)
    if low < 0 < high:
        outside /= 2
    if high > 0:
        # the last bin with more than that above its left edge
        last = int((weights.flip(0).cumsum(0).flip(0) > outside).sum()) - 1
        high = min(high, max(0.0, float(edges[last]) + histogram.width))
    if low < 0:
        first = len(edges) - int((weights.cumsum(0) > outside).sum())
        low = max(low, min(0.0, float(edges[first])))
    return low, high


def least_expected_error(histogram: StreamingHistogram, levels: int) -> tuple[float, float]:
    """Minimise the expected squared error, with rounding taken for uniform noise.

    With step `d`: `d**2 / 12` for each value inside that is not zero, which is exact, and
    `(x - end)**2` for each outside. Sums over bins come from cumulated moments, so every pair of
    ends costs the same; a grid of them is refined around its best.

    Source: Banner et al. 2019, Post Training 4-bit Quantization of Convolution Networks, eq. 5,
    with the measured distribution in place of a Laplacian.
    """
    low, high = _ends(histogram)
    edges, weights = histogram.bins()
    values = _middles(histogram, edges)
    moments = torch.stack([weights, weights * values, weights * values.square()])
    below = torch.cat([torch.zeros(3, 1, dtype=torch.float64), moments.cumsum(1)], 1)
    zeros = float(histogram.zeros)

    def error(lows: Tensor, highs: Tensor) -> Tensor:
        until_low = below[:, torch.searchsorted(values, lows)]
        until_high = below[:, torch.searchsorted(values, highs, right=True)]
        beyond = below[:, -1:] - until_high
        clipped_low = until_low[2] - 2 * lows * until_low[1] + lows.square() * until_low[0]
        clipped_high = beyond[2] - 2 * highs * beyond[1] + highs.square() * beyond[0]
        inside = until_high[0] - until_low[0] - zeros
        step = (highs - lows) / (levels - 1)
        return clipped_low + clipped_high + inside.clamp(min=0) * step.square() / 12

    def on_grid(lows: Tensor, highs: Tensor) -> Tensor:
        return error(lows.repeat_interleave(len(highs)), highs.repeat(len(lows)))

    return _search(low, high, on_grid)


def least_squared_error(histogram: StreamingHistogram, levels: int) -> tuple[float, float]:
    """Minimise the squared error that quantizing the histogram really makes.

    `sum over bins of weight * (x - q(x))**2`, `x` the bin's middle, and
    `q(x) = d * (clamp(round(x / d) + z, 0, levels - 1) - z)`. Other than the expected error, it
    sees how steps fall on peaks. One end is searched after the other, twice.

    Source: Nagel et al. 2021, A White Paper on Neural Network Quantization, eq. 9.
    """
    low, high = _ends(histogram)
    values, weights = _apart_from_zeros(histogram)

    def error(lows: Tensor, highs: Tensor) -> Tensor:
        step = ((highs - lows) / (levels - 1)).clamp(min=torch.finfo(torch.float32).tiny)[:, None]
        zero = (-lows[:, None] / step).round()
        rounded = (values / step).round().add_(zero).clamp_(0, levels - 1).sub_(zero).mul_(step)
        return rounded.sub_(values).square_() @ weights

    return _descend(low, high, error)


def least_divergence(histogram: StreamingHistogram, levels: int) -> tuple[float, float]:
    """Minimise the Kullback-Leibler divergence of the quantized distribution from the clipped one.

    For each candidate range, `P` is the histogram inside with what lies outside added to its
    outermost bins, and `Q` the histogram inside after its bins were merged into `levels` levels,
    each level's weight spread evenly over those of its bins that `P` fills. Sought is the least
    `sum(p * log(p / q))`, both normalised; one end is searched after the other. Values that are
    zero count in neither: they stay exact, but would seem to be spread over a level.

    Source: Migacz 2017, 8-bit Inference with TensorRT, there for magnitudes.
    """
    low, high = _ends(histogram)
    values, weights = _apart_from_zeros(histogram)
    total = float(weights.sum())

    def divergence(lows: Tensor, highs: Tensor) -> Tensor:
        return torch.stack([one(float(a), float(b)) for a, b in zip(lows, highs, strict=True)])

    def one(start: float, end: float) -> Tensor:
        first = int(torch.searchsorted(values, start))
        last = int(torch.searchsorted(values, end, right=True))
        if first >= last or end <= start:
            return torch.tensor(torch.inf, dtype=torch.float64)
        kept = weights[first:last]
        clipped = kept.clone()
        clipped[0] += float(weights[:first].sum())
        clipped[-1] += float(weights[last:].sum())
        level = ((values[first:last] - start) * (levels / (end - start))).long()
        level.clamp_(0, levels - 1)
        mass = torch.bincount(level, weights=kept, minlength=levels)
        filled = torch.bincount(level, minlength=levels)
        p, q = clipped / total, (mass / filled)[level] / kept.sum()
        return (p * (p / q).log()).sum()

    return _descend(low, high, divergence)


def _ends(histogram: StreamingHistogram) -> tuple[float, float]:
    return min(histogram.low, 0.0), max(histogram.high, 0.0)


def _middles(histogram: StreamingHistogram, edges: Tensor) -> Tensor:
    return (edges + histogram.width / 2).clamp(histogram.low, histogram.high)


def _apart_from_zeros(histogram: StreamingHistogram) -> tuple[Tensor, Tensor]:
    """Return middles and weights of bins that hold more than exact zeros."""
    edges, weights = histogram.bins()
    weights = weights - torch.where(edges == 0, float(histogram.zeros), 0.0)
    kept = weights > 0
    return _middles(histogram, edges[kept]), weights[kept]


def _search(
    low: float, high: float, on_grid: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """Return the best pair of ends: on a coarse grid, then on finer ones around the best."""
    bounds = [(low, 0.0), (0.0, high)]
    spans = list(bounds)
    best = (low, high)
    for _ in range(3):
        axes = [_between(*span) for span in spans]
        errors = on_grid(axes[0], axes[1])
        index = int(errors.argmin())
        best = (float(axes[0][index // len(axes[1])]), float(axes[1][index % len(axes[1])]))
        spans = [
            (max(bound[0], at - 2 * (span[1] - span[0]) / _COARSE),
             min(bound[1], at + 2 * (span[1] - span[0]) / _COARSE))
            for at, span, bound in zip(best, spans, bounds, strict=True)
        ]  # fmt: skip
    return best


def _descend(
    low: float, high: float, error: Callable[[Tensor, Tensor], Tensor]
) -> tuple[float, float]:
    """Return the best ends, each searched while the other is held: far and wide, then nearby.

    Of equally good ones, the outermost.
    """
    start, end = low, high
    reach_low, reach_high = (low, 0.0), (0.0, high)
    for _ in range(2):
        if high > 0:
            candidates = torch.cat([_between(*reach_high).flip(0), torch.tensor([end]).double()])
            errors = error(torch.full_like(candidates, start), candidates)
            end = float(candidates[int(errors.argmin())])
        if low < 0:
            candidates = torch.cat([_between(*reach_low), torch.tensor([start]).double()])
            errors = error(candidates, torch.full_like(candidates, end))
            start = float(candidates[int(errors.argmin())])
        near = 2 / _COARSE
        reach_high = (max(0.0, end - near * high), min(high, end + near * high))
        reach_low = (max(low, start + near * low), min(0.0, start - near * low))
    return start, end


def _between(low: float, high: float) -> Tensor:
    """Evenly spaced candidates, both ends among them; one where there is no room."""
    if high <= low:
        return torch.tensor([low], dtype=torch.float64)
    return torch.linspace(low, high, _COARSE + 1, dtype=torch.float64)
