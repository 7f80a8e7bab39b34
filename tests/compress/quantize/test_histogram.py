from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from compress.quantize.histogram import StreamingHistogram


def histogram_of(*batches: Tensor) -> StreamingHistogram:
    histogram = StreamingHistogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def mixed(seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    scales = (1e-3, 50.0, 1.0, 7.0)
    return [torch.randn(3, 4, 11, generator=generator) * scale for scale in scales]


def test_counts_are_those_of_a_plain_loop() -> None:
    batches = mixed()
    histogram = histogram_of(*batches)
    edges, weights = histogram.bins()
    counted: dict[float, int] = {}
    for value in torch.cat([batch.flatten() for batch in batches]).tolist():
        edge = math.floor(value / histogram.width) * histogram.width
        counted[edge] = counted.get(edge, 0) + 1
    assert dict(zip(edges.tolist(), weights.tolist(), strict=True)) == counted
    assert list(counted) != []
    assert edges.tolist() == sorted(edges.tolist())


def test_neither_the_order_of_batches_nor_their_cut_changes_anything() -> None:
    batches = mixed()
    ways = [batches, batches[::-1], [torch.cat(batches)], [b[i] for b in batches for i in range(3)]]
    first, *others = [histogram_of(*way) for way in ways]
    for other in others:
        assert torch.equal(first.bins()[0], other.bins()[0])
        assert torch.equal(first.bins()[1], other.bins()[1])
        assert (first.low, first.high, first.zeros) == (other.low, other.high, other.zeros)


def test_bins_stay_fine_and_few() -> None:
    histogram = histogram_of(*mixed())
    bins_in_range = (histogram.high - histogram.low) / histogram.width
    assert 2000 < bins_in_range <= 4096


def test_extremes_of_large_tensors_are_exact_and_counts_a_fair_sample() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(8, 64, 64, 64, generator=generator)
    values[3, 5, 7, 9], values[1, 2, 3, 4] = 30.0, -40.0
    for laid_out in (values, values.contiguous(memory_format=torch.channels_last)):
        histogram = histogram_of(laid_out)
        assert (histogram.low, histogram.high) == (-40.0, 30.0)
        edges, weights = histogram.bins()
        assert float(weights.sum()) == pytest.approx(values.numel(), rel=1e-3)
        share = float(weights[edges < 0].sum() / weights.sum())
        assert share == pytest.approx(0.5, abs=0.01)


def test_every_channel_is_sampled_however_tensors_lie_in_memory() -> None:
    """A step that divided the channels would only ever see some of them."""
    values = torch.arange(64.0).reshape(1, 64, 1, 1).expand(8, 64, 64, 64).contiguous()
    for laid_out in (values, values.contiguous(memory_format=torch.channels_last)):
        edges, weights = histogram_of(laid_out).bins()
        assert len(edges) == 64
        assert float(weights.max() / weights.min()) < 1.01


def test_zeros_are_counted_apart() -> None:
    histogram = histogram_of(torch.tensor([0.0, -0.0, 1e-3, 1.0]))
    assert histogram.zeros == 2
    assert float(histogram.bins()[1].sum()) == 4


def test_what_is_not_finite_counts_for_nothing() -> None:
    given = torch.tensor([1.0, math.inf, -math.inf, math.nan, -2.0])
    histogram = histogram_of(given, torch.full((3,), math.nan), torch.empty(0, 5))
    assert (histogram.low, histogram.high) == (-2.0, 1.0)
    assert float(histogram.bins()[1].sum()) == 2
    assert not histogram_of(torch.empty(0)).seen


@pytest.mark.parametrize("scale", [1e-30, 1e-8, 1.0, 1e30])
def test_any_magnitude_fits(scale: float) -> None:
    values = torch.linspace(-1, 2, 999) * scale
    histogram = histogram_of(values)
    assert float(histogram.bins()[1].sum()) == 999
    assert histogram.high == pytest.approx(2 * scale)


def test_all_zeros_fit() -> None:
    histogram = histogram_of(torch.zeros(10))
    assert (histogram.low, histogram.high, histogram.zeros) == (0.0, 0.0, 10)


def test_merging_is_as_if_all_values_had_been_added_to_one() -> None:
    batches = mixed()
    for cut in range(len(batches) + 1):
        whole = histogram_of(*batches)
        left, right = histogram_of(*batches[:cut]), histogram_of(*batches[cut:])
        left.merge(right)
        assert torch.equal(left.bins()[0], whole.bins()[0])
        assert torch.equal(left.bins()[1], whole.bins()[1])
        assert (left.low, left.high, left.zeros) == (whole.low, whole.high, whole.zeros)
