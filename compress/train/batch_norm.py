"""BatchNorm of images that lie pixel by pixel, at any number of channels.

PyTorch sums the channels of such images a row of channels at a time, each thread into a row of its
own. Where a row does not fill cache lines of 64 bytes, threads write to the same line, and rows
shorter than a vector are summed number by number: with 8 or 24 channels, the gradient took two
threads ten times as long as with 16. Here several pixels are taken for one row, whose sums are
added up afterwards.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

_LINE = 16
"""Sums, float32, in a cache line."""
_ROW = 64
"""Sums in a row, at least: from there on, longer rows are not quicker."""


def batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `torch.nn.functional.batch_norm` returns, gradients included, but for rounding.

    Args:
        input: On a processor. `[samples, channels, height, width]` that lie pixel by pixel, in
            float32 or bfloat16, take the quicker way; all others go to PyTorch.
        running_mean: `[channels]`; brought up to date in place in training.
        running_var: As above.
        weight: `[channels]`, float32.
        bias: As above.
        training: Whether to go by the batch's mean and variance.
        momentum: Of the running ones.
        eps: Is added to the variance.
    """
    pixels = _pixels_in_row(input, weight, bias, running_mean)
    if pixels == 1:
        return F.batch_norm(
            input, running_mean, running_var, weight, bias, training, momentum, eps
        )  # fmt: skip
    if training:
        y, mean, variance = _BatchNorm.apply(input, weight, bias, pixels, eps)  # type: ignore[no-untyped-call]
        if running_mean is not None and running_var is not None:
            samples = input.numel() // input.shape[1]
            running_mean.lerp_(mean, momentum)
            running_var.lerp_(variance * (samples / (samples - 1)), momentum)
        return y  # type: ignore[no-any-return]
    assert running_mean is not None
    assert running_var is not None
    rows = F.batch_norm(
        _rows(input, pixels), _wide(running_mean, pixels), _wide(running_var, pixels),
        None if weight is None else _wide(weight, pixels),
        None if bias is None else _wide(bias, pixels), False, momentum, eps,
    )  # fmt: skip
    return _images(rows, input.shape)


def _pixels_in_row(input: Tensor, *others: Tensor | None) -> int:
    """Return how many pixels make a row; 1 to leave it to PyTorch."""
    if input.dim() != 4 or input.dtype not in (torch.float32, torch.bfloat16):
        return 1
    channels = input.shape[1]
    if not channels or channels % _LINE == 0:
        return 1
    if any(each is not None and each.dtype != torch.float32 for each in others):
        return 1
    if not input.is_contiguous(memory_format=torch.channels_last):
        return 1
    pixels = math.lcm(channels, _LINE) // channels
    pixels *= -(-_ROW // (pixels * channels))
    samples = input.numel() // channels
    return pixels if samples > pixels and samples % pixels == 0 else 1


class _BatchNorm(torch.autograd.Function):
    """In training; gives the batch's mean and its variance, divided by the count, besides.

    Source: Ioffe and Szegedy 2015, Batch normalization, section 3.
    """

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        pixels: int,
        eps: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        rows = _rows(input, pixels)
        unused = _standard(rows.shape[1])[0]  # with it, the sums of bfloat16 come in float32
        means, variances = (
            each.view(pixels, -1)
            for each in torch.batch_norm_update_stats(rows, unused, unused, 0.0)
        )
        mean = means.mean(0)
        variance = variances.mean(0) + (means - mean).square().mean(0)
        scale = torch.rsqrt(variance + eps)
        factor = scale if weight is None else scale * weight
        offset = -mean * factor if bias is None else bias - mean * factor
        ctx.save_for_backward(input, mean, scale, factor)
        ctx.pixels = pixels
        ctx.mark_non_differentiable(mean, variance)
        return _images(_affine(rows, factor, offset, pixels), input.shape), mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        input, mean, scale, factor = ctx.saved_tensors
        pixels = ctx.pixels
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        of_y, x = _rows(gradient, pixels), _rows(input, pixels)
        _, of_weight, of_bias = torch.ops.aten.native_batch_norm_backward(
            of_y, x, None, None, None, _wide(mean, pixels), _wide(scale, pixels), True, 0.0,
            [False, True, True],
        )  # fmt: skip
        of_weight, of_bias = of_weight.view(pixels, -1).sum(0), of_bias.view(pixels, -1).sum(0)
        of_input = None
        if ctx.needs_input_grad[0]:
            samples = input.numel() // input.shape[1]
            slope = -factor * scale * of_weight / samples
            of_input = _images(
                _affine(of_y, factor, -factor * of_bias / samples, pixels)
                + _affine(x, slope, -slope * mean, pixels),
                input.shape,
            )
        wanted = ctx.needs_input_grad
        return (
            of_input,
            of_weight if wanted[1] else None,
            of_bias if wanted[2] else None,
            None,
            None,
        )


def _affine(rows: Tensor, factor: Tensor, offset: Tensor, pixels: int) -> Tensor:
    """Return `factor * x + offset` of each channel, computed in float32, rounded once."""
    mean, variance = _standard(rows.shape[1])
    return torch.native_batch_norm(
        rows, _wide(factor, pixels), _wide(offset, pixels), mean, variance, False, 0.0, 0.0
    )[0]


@functools.cache
def _standard(length: int) -> tuple[Tensor, Tensor]:
    """Return means and variances that change nothing."""
    return torch.zeros(length), torch.ones(length)


def _wide(channels: Tensor, pixels: int) -> Tensor:
    """Return the numbers of channels, for rows of so many pixels."""
    return channels.expand(pixels, -1).contiguous().view(-1)


def _rows(images: Tensor, pixels: int) -> Tensor:
    """View images that lie pixel by pixel as rows of so many pixels' channels."""
    return images.permute(0, 2, 3, 1).view(-1, pixels * images.shape[1])


def _images(rows: Tensor, shape: torch.Size) -> Tensor:
    samples, channels, height, width = shape
    return rows.view(samples, height, width, channels).permute(0, 3, 1, 2)
