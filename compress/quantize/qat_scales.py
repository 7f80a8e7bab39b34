"""Step sizes of weights, found by looking at them."""

from __future__ import annotations

import torch
from torch import Tensor

_CANDIDATES = 64
_EPSILON = torch.finfo(torch.float32).eps


def widest_steps(weight: Tensor, limits: tuple[int, int], axis: int | None) -> Tensor:
    """Return symmetric step sizes that just span the largest weights, as `torch.ao` finds them.

    Args:
        weight: Of a layer.
        limits: Least and greatest integer.
        axis: Of the weight, along which channels lie that have a step size each; None for one.

    Returns:
        `[channels]`, or `[1]`.
    """
    low, high = limits
    return (_rows(weight, axis).abs().amax(1) / ((high - low) / 2)).clamp(min=_EPSILON)


def least_squares_steps(weight: Tensor, limits: tuple[int, int], axis: int | None) -> Tensor:
    """Return symmetric step sizes that round a weight with the least squared error.

    Candidates are shares of the one that spans the largest weight, down to a quarter of it.

    Args:
        weight: Of a layer.
        limits: Least and greatest integer.
        axis: Of the weight, along which channels lie that have a step size each; None for one.

    Returns:
        `[channels]`, or `[1]`.

    Source: Nagel et al. 2021, A White Paper on Neural Network Quantization, section 3.1.
    """
    low, high = limits
    rows = _rows(weight.detach().float(), axis)
    widest = widest_steps(weight.detach().float(), limits, axis)
    best, least = widest, torch.full_like(widest, torch.inf)
    for share in torch.linspace(1, 0.25, _CANDIDATES):
        step = widest * share
        rounded = (rows / step[:, None]).round().clamp(low, high) * step[:, None]
        error = (rounded - rows).square().sum(1)
        best = torch.where(error < least, step, best)
        least = torch.minimum(error, least)
    return best


def _rows(weight: Tensor, axis: int | None) -> Tensor:
    return weight.reshape(1, -1) if axis is None else weight.transpose(0, axis).flatten(1)
