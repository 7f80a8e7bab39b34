"""Observers for `torch.ao`: of activations, by our histogram, and of weights that are rounded."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.ao.quantization import MinMaxObserver, PerChannelMinMaxObserver
from torch.ao.quantization.observer import UniformQuantizationObserverBase

from compress.quantize.histogram import StreamingHistogram
from compress.quantize.ranges import find_range
from compress.spec import Observer


class RangeObserver(UniformQuantizationObserverBase):
    """Counts activations, and in the end picks the range that `ranges.py` finds best."""

    def __init__(
        self, method: Observer, percentile: float, quant_min: int = 0, quant_max: int = 255
    ) -> None:
        super().__init__(
            torch.quint8, torch.per_tensor_affine, quant_min=quant_min, quant_max=quant_max
        )
        self.method = method
        self.percentile = percentile
        self.histogram = StreamingHistogram(counts=method != "minmax")

    def forward(self, x: Tensor) -> Tensor:
        """Take in an activation, and hand it on."""
        self.histogram.add(x)
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return scale and zero point, each `[1]`."""
        levels = self.quant_max - self.quant_min + 1
        low, high = find_range(self.histogram, self.method, self.percentile, levels)
        qparams: tuple[Tensor, Tensor] = self._calculate_qparams(
            torch.tensor(low, dtype=torch.float32), torch.tensor(high, dtype=torch.float32)
        )
        return qparams


class EchoObserver(RangeObserver):
    """Has the scale that another observer finds, and looks at nothing."""

    def __init__(self, leader: RangeObserver) -> None:
        super().__init__(leader.method, leader.percentile, leader.quant_min, leader.quant_max)
        self._leader = [leader]  # in a list, so as not to be a module inside this one

    def forward(self, x: Tensor) -> Tensor:
        """Hand an activation on."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return the leader's scale and zero point."""
        return self._leader[0].calculate_qparams()


class GivenChannelScales(PerChannelMinMaxObserver):
    """Weight scales that are known before: those that the weights were rounded for."""

    def __init__(self, scales: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self._scales = scales

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return scales and zero points, `[out]`."""
        return self._scales, torch.zeros_like(self._scales, dtype=torch.int64)


class GivenScale(MinMaxObserver):
    """As `GivenChannelScales`, for one scale."""

    def __init__(self, scales: Tensor, **options: Any) -> None:
        super().__init__(**options)
        self._scales = scales

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return scale and zero point, `[1]`."""
        return self._scales, torch.zeros_like(self._scales, dtype=torch.int64)
