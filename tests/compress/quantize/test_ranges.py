from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from compress.quantize.histogram import StreamingHistogram
from compress.quantize.ranges import find_range
from compress.spec import Observer

LEVELS = 128


def draw(name: str, count: int = 40_000) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    normal = torch.randn(count, generator=generator)
    return {
        "relu": normal.relu(),
        "normal": normal,
        "outliers": torch.cat([normal, torch.tensor([40.0, -30.0])]),
        "hardswish": torch.nn.functional.hardswish(2 * normal),
        "negative": -normal.abs() - 1,
        "cubed": normal**3,
    }[name]


SHAPES = ("relu", "normal", "outliers", "hardswish", "negative", "cubed")


def found(values: Tensor, observer: Observer, percentile: float = 99.9) -> tuple[float, float]:
    histogram = StreamingHistogram()
    for part in values.split(9_000):
        histogram.add(part)
    return find_range(histogram, observer, percentile, LEVELS)


def squared_error(values: Tensor, low: float, high: float) -> float:
    """Of `q(x) = d * (clamp(round(x / d) + z) - z)`, on the values themselves."""
    step = (high - low) / (LEVELS - 1)
    zero = round(-low / step)
    rounded = ((values.double() / step).round() + zero).clamp(0, LEVELS - 1) - zero
    return float((rounded * step - values).square().mean())


def expected_error(values: Tensor, low: float, high: float) -> float:
    """`d**2 / 12` inside, but for zeros; the squared distance from the range outside."""
    step = (high - low) / (LEVELS - 1)
    clipped = values.double().clamp(low, high)
    inside = (clipped == values) & (values != 0)
    return float((clipped - values).square().mean() + inside.double().mean() * step**2 / 12)


def grid(values: Tensor, count: int = 120) -> list[tuple[float, float]]:
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)
    lows = [low * i / count for i in range(count + 1)] if low < 0 else [0.0]
    highs = [high * i / count for i in range(count + 1)] if high > 0 else [0.0]
    return [(a, b) for a in lows for b in highs if b > a]


@pytest.mark.slow
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(
    ("observer", "error"), [("mse", squared_error), ("histogram", expected_error)]
)
def test_no_range_on_a_plain_grid_has_a_smaller_error(
    shape: str, observer: Observer, error: Callable[[Tensor, float, float], float]
) -> None:
    values = draw(shape)[-4000:]
    best = min(error(values, low, high) for low, high in grid(values, 40))
    # 3 %: values lie anywhere in their bins, and one end is searched at a time
    assert error(values, *found(values, observer)) <= 1.03 * best


@pytest.mark.parametrize("shape", SHAPES)
def test_mse_and_histogram_never_lose_to_the_extremes(shape: str) -> None:
    values = draw(shape)
    worst = squared_error(values, *found(values, "minmax"))
    assert squared_error(values, *found(values, "mse")) <= 1.001 * worst
    assert squared_error(values, *found(values, "histogram")) <= 1.02 * worst


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("percentile", [90.0, 99.0, 99.9, 100.0])
def test_percentile_keeps_that_share_inside_and_hardly_more(shape: str, percentile: float) -> None:
    values = draw(shape)
    histogram = StreamingHistogram()
    histogram.add(values)
    low, high = find_range(histogram, "percentile", percentile, LEVELS)

    def share(margin: float) -> float:
        kept = (values >= min(low + margin, 0)) & (values <= max(high - margin, 0))
        return float(kept.double().mean())

    assert share(0) >= percentile / 100
    assert share(histogram.width) <= percentile / 100
    if percentile == 100:
        assert (low, high) == (min(float(values.min()), 0), max(float(values.max()), 0))


def test_percentile_takes_as_much_from_either_end_of_signed_values() -> None:
    values = draw("cubed")
    low, high = found(values, "percentile", 98.0)
    assert low == pytest.approx(float(values.quantile(0.01)), rel=0.02)
    assert high == pytest.approx(float(values.quantile(0.99)), rel=0.02)


def divergence(values: Tensor, width: float, high: float) -> float:
    """KL divergence for non-negative values, from the definition, bin by bin."""
    counts: dict[int, int] = {}
    for value in values.tolist():
        if value != 0:
            counts[math.floor(value / width)] = counts.get(math.floor(value / width), 0) + 1
    inside = sorted(k for k in counts if (k + 0.5) * width < high)
    levels: dict[int, list[int]] = {}
    for k in inside:
        levels.setdefault(min(LEVELS - 1, int((k + 0.5) * width / (high / LEVELS))), []).append(k)
    q = {k: sum(counts[j] for j in ks) / len(ks) for ks in levels.values() for k in ks}
    p = {k: float(counts[k]) for k in inside}
    p[inside[-1]] += sum(n for k, n in counts.items() if k > inside[-1])
    total_p, total_q = sum(p.values()), sum(q.values())
    return sum(p[k] / total_p * math.log(p[k] / total_p / (q[k] / total_q)) for k in inside)


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["relu", "long tail"])
def test_entropy_finds_the_least_divergence_of_a_plain_grid(shape: str) -> None:
    values = draw("relu") if shape == "relu" else draw("normal").abs() ** 2
    histogram = StreamingHistogram()
    histogram.add(values)
    low, high = find_range(histogram, "entropy", 99.9, LEVELS)
    assert low == 0
    tops = [float(values.max()) * i / 32 for i in range(1, 33)]
    best = min(divergence(values, histogram.width, top) for top in tops)
    assert divergence(values, histogram.width, high) <= best + 1e-9


def test_entropy_cuts_rare_outliers_off() -> None:
    low, high = found(draw("outliers"), "entropy")
    assert -10 < low < -2
    assert 2 < high < 10


@pytest.mark.parametrize("observer", ["histogram", "minmax", "percentile", "mse", "entropy"])
def test_every_range_holds_zero_and_lies_inside_the_extremes(observer: Observer) -> None:
    for shape in SHAPES:
        values = draw(shape)
        low, high = found(values, observer)
        assert min(float(values.min()), 0) <= low <= 0 <= high <= max(float(values.max()), 0)
        assert low < high
    for constant in (0.0, 3.0, -2.0):
        assert found(torch.full((50,), constant), observer)[0] <= 0


@pytest.mark.parametrize("observer", ["histogram", "mse", "percentile", "entropy"])
def test_constants_keep_their_value(observer: Observer) -> None:
    assert found(torch.full((50,), 3.0), observer) == (0.0, pytest.approx(3.0, rel=0.02))
    assert found(torch.full((50,), -3.0), observer) == (pytest.approx(-3.0, rel=0.02), 0.0)
