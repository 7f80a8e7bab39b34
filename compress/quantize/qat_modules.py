"""Modules that round in training as the int8 kernels will: of values, of weights, of whole layers.

All hand gradients straight through the rounding, and none beyond the ends of the scale.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.channels import CONVOLUTIONS
from compress.quantize.qat_scales import widest_steps

TRANSPOSED: dict[type[nn.Module], Any] = {
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}
"""Kinds of transposed convolutions, to what they call."""

_LEVELS = (0, 255)
"""What int8 kernels clip activations to, also where a scale was chosen to need less of it."""
_NEAR = 1e-4
"""To a tie, in steps; float32 errs by a tenth of that."""
_LEAST_FACTOR = 2.0**-10


class RoundedValue(nn.Module):
    """Rounds an activation to an 8-bit scale.

    Attributes:
        scale: `[1]`.
        zero_point: `[1]`, int32.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", torch.empty(1))
        self.register_buffer("zero_point", torch.empty(1, dtype=torch.int32))
        self.set_range(scale, zero_point)

    def set_range(self, scale: Tensor, zero_point: Tensor) -> None:
        """Round to another scale from now on."""
        self.scale.copy_(scale)
        self.zero_point.copy_(zero_point)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded, in float32."""
        return torch.fake_quantize_per_tensor_affine(
            x.float(), self.scale, self.zero_point, *_LEVELS
        )


class RoundedMean(nn.Module):
    """Rounds means of rounded values, and ties among them to even integers, as int8 kernels do.

    A quarter of all means of four are ties, where float32 goes either way.

    Args:
        value: Rounds what the means are of, and the means.
    """

    def __init__(self, value: RoundedValue) -> None:
        super().__init__()
        self.value = value

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` rounded, in float32."""
        x = x.float()
        with torch.no_grad():
            steps = x / self.value.scale
            half = torch.round(2 * steps) / 2
            even = torch.round(half + self.value.zero_point) - self.value.zero_point
            moved = torch.where((steps - half).abs() < _NEAR, even * self.value.scale - x, 0.0)
        rounded: Tensor = self.value(x + moved)
        return rounded


class RoundedWeight(nn.Module):
    """Rounds a weight to symmetric steps, whose size follows the weight and is learned.

    The step of a channel is `widest * share * factor`: `widest` would just span the largest weight
    that there is, and follows it in training as long as `factor` learns. With `N` weights sharing a
    step, its gradient is scaled by `1 / sqrt(N * high)`, and by the inverse square of the step at
    the start, so that a step of plain gradient descent on `factor` is the one that the source makes
    on the step size itself, while an optimizer that goes by signs, as Adam does, changes all step
    sizes by the same share.

    Source: Esser et al. 2020, Learned Step Size Quantization; there `widest` is constant.

    Args:
        weight: What is to be rounded, at the beginning.
        start: Step sizes at the beginning, `[channels]`, or `[1]` for all.
        limits: Least and greatest integer.
        axis: Of the weight, along which the channels lie; None for one step size.
    """

    widest: Tensor
    share: Tensor
    zeros: Tensor

    def __init__(
        self, weight: Tensor, start: Tensor, limits: tuple[int, int], axis: int | None
    ) -> None:
        super().__init__()
        self.limits, self.axis = limits, axis
        widest = widest_steps(weight.detach(), limits, axis)
        self.register_buffer("widest", widest)
        self.register_buffer("share", start.detach() / widest)
        self.register_buffer("zeros", torch.zeros_like(widest), persistent=False)
        self.factor = nn.Parameter(torch.ones_like(widest))
        self._gain = 1 / float(start.detach().square().mean())

    @property
    def scale(self) -> Tensor:
        """Step sizes, `[channels]` or `[1]`."""
        return self.widest * self.share * self.factor.clamp(min=_LEAST_FACTOR)

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight rounded, in float32."""
        weight = weight.float()
        if self.training and self.factor.requires_grad:
            self.widest.copy_(widest_steps(weight.detach(), self.limits, self.axis))
        sharing = weight.numel() / len(self.share)
        gain = self._gain / math.sqrt(sharing * self.limits[1])
        if self.axis is None:
            return torch._fake_quantize_learnable_per_tensor_affine(
                weight, self.scale, self.zeros, *self.limits, gain
            )
        return torch._fake_quantize_learnable_per_channel_affine(
            weight, self.scale, self.zeros, self.axis, *self.limits, gain
        )


class RoundedLayer(nn.Module):
    """A layer whose weight is rounded as it is once the BatchNorm behind it is folded into it.

    While the BatchNorm learns, it normalises by the statistics of the batch, and what is rounded is
    the weight times `gamma / sqrt(running_var + eps)`, which is taken out of it again afterwards.
    Once it goes by its running statistics, the layer computes just what it will when exported.

    Source: Krishnamoorthi 2018, Quantizing deep convolutional networks for efficient inference,
    section 3.2.1, there with corrections that the division spares.

    Args:
        layer: A convolution, transposed convolution or Linear.
        norm: The BatchNorm behind it, if any.
        rounding: Of its weight; None for a layer that stays float.
        is_rectified: Whether a relu belongs to it.
    """

    def __init__(
        self,
        layer: nn.Module,
        norm: nn.Module | None,
        rounding: RoundedWeight | None,
        *,
        is_rectified: bool,
    ) -> None:
        super().__init__()
        self.layer, self.norm, self.rounding = layer, norm, rounding
        self.is_rectified = is_rectified

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output, with the BatchNorm and the relu that belong to it."""
        layer: Any = self.layer
        norm = self.norm
        if norm is not None and norm.training:
            # a channel that the norm makes constant is rounded as it is
            factor = _fold_factor(norm)
            factor = torch.where(factor.abs() < 1e-12, 1.0, factor)
            weight = _scaled(self._rounded(_scaled(layer.weight, factor)), 1 / factor)
            y = norm(_product(layer, x, weight, layer.bias))
        else:
            y = _product(layer, x, *self.folded())
        return F.relu(y) if self.is_rectified else y

    def folded(self) -> tuple[Tensor, Tensor | None]:
        """Return the weight, rounded, and the bias that the layer is exported with."""
        layer: Any = self.layer
        norm: Any = self.norm
        if norm is None:
            return self._rounded(layer.weight), layer.bias
        factor = _fold_factor(norm)
        bias = -norm.running_mean if layer.bias is None else layer.bias - norm.running_mean
        bias = bias * factor if norm.bias is None else bias * factor + norm.bias
        return self._rounded(_scaled(layer.weight, factor)), bias

    def _rounded(self, weight: Tensor) -> Tensor:
        rounding: RoundedWeight | None = self.rounding
        return weight if rounding is None else rounding(weight)


def _fold_factor(norm: Any) -> Tensor:
    factor: Tensor = torch.rsqrt(norm.running_var + norm.eps)
    return factor if norm.weight is None else factor * norm.weight


def _scaled(weight: Tensor, factor: Tensor) -> Tensor:
    return weight * factor.view(-1, *[1] * (weight.dim() - 1))


def _product(layer: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, bias)
    if isinstance(layer, CONVOLUTIONS):
        y: Tensor = layer._conv_forward(x, weight, bias)
        return y
    transposed: Callable[..., Tensor] = TRANSPOSED[type(layer)]
    return transposed(
        x, weight, bias, layer.stride, layer.padding, layer.output_padding, layer.groups,
        layer.dilation,
    )  # fmt: skip
