"""Packed weights of torch's int8 operators, as plain tensors and settings."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_CONVOLUTIONS: tuple[Any, ...] = (F.conv1d, F.conv2d, F.conv3d)
_TRANSPOSED: tuple[Any, ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)


@dataclass(frozen=True)
class Unpacked:
    """One int8 layer.

    Attributes:
        function: What it computes in float: `function(x, weight, bias, *settings)`.
        settings: Strides and the like.
        integers: The weight, int8.
        scale: `[]`, or one for each channel, float32.
        zero_point: Of the shape of `scale`.
        axis: Of the channels.
        bias: Float32.
    """

    function: Any
    settings: tuple[Any, ...]
    integers: Tensor
    scale: Tensor
    zero_point: Tensor
    axis: int
    bias: Tensor | None


def unpack(name: str, packed: Any, *, is_padded: bool = False) -> Unpacked:
    """Open packed weights.

    Args:
        name: Of the operator that takes them: `linear`, `conv2d_relu`.
        packed: Its weights.
        is_padded: Whether its input has been padded already.
    """
    weight, bias = packed.unpack()
    if "1d" in name and weight.dim() == 4:  # packed as if of two axes
        weight = weight.squeeze(2)
    function, settings = (
        (F.linear, ())
        if name.startswith("linear")
        else _convolution(name, packed, is_padded=is_padded)
    )
    axis = 0
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        scale = weight.q_per_channel_scales().float()
        zero_point, axis = weight.q_per_channel_zero_points(), weight.q_per_channel_axis()
    else:
        scale, zero_point = torch.tensor(weight.q_scale()), torch.tensor(weight.q_zero_point())
    kept = None if bias is None else bias.detach()
    return Unpacked(function, settings, weight.int_repr(), scale, zero_point, axis, kept)


def _convolution(name: str, packed: Any, *, is_padded: bool) -> tuple[Any, tuple[Any, ...]]:
    axes = int(name[name.index("d") - 1])
    stride, dilation = list(packed.stride())[-axes:], list(packed.dilation())[-axes:]
    padding = [0] * axes if is_padded else list(packed.padding())[-axes:]
    if packed.transpose():
        further = list(packed.output_padding())[-axes:]
        return _TRANSPOSED[axes - 1], (stride, padding, further, packed.groups(), dilation)
    return _CONVOLUTIONS[axes - 1], (stride, padding, dilation, packed.groups())
