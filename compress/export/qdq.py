"""Two ways to write a quantized value down: as ONNX does, and with plain operators of torch.

In a reference graph every tensor is float. One that was int8 has been rounded to its scale and
widened again, which exporters and runtimes know as a pair of QuantizeLinear and DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

RANGES = {torch.uint8: (0, 255), torch.int8: (-128, 127)}
"""Smallest and largest integer."""


@dataclass(frozen=True)
class Dialect:
    """How a reference graph spells quantization out.

    Attributes:
        round_to: `(x, scale, zero_point, dtype)` to float values of that scale.
        widen: `(integers, scales, zero_points, axis)` to floats; `zero_points` None for zeros.
        is_fused: Whether a runtime is to find integer kernels in the graph. Then biases of
            convolutions are int32, of input scale times weight scale; products of many axes are
            done in two; values that only move are rounded again, to no effect.
        spells_activations: Whether activations without an integer kernel are spelt in additions,
            products and sigmoids, which have one.
        rounds_for_floats: Whether what an integer kernel gives is rounded where only float
            operators read it; else it is held to the range alone.
    """

    round_to: Callable[[Tensor, float, int, torch.dtype], Tensor]
    widen: Callable[[Tensor, Tensor, Tensor | None, int], Tensor]
    is_fused: bool
    spells_activations: bool
    rounds_for_floats: bool


@torch.library.custom_op("tersor::quantize", mutates_args=())
def quantize(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    """ONNX's QuantizeLinear: round half to even, saturate at the ends of `dtype`."""
    low, high = RANGES[dtype]
    # times the inverse, as torch's own kernels do; a division may fall to the other side of half
    scaled = torch.round(x * (1 / torch.tensor(scale, dtype=torch.float32)))
    return (scaled + zero_point).clamp(low, high).to(dtype)


@quantize.register_fake
def _(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(x, dtype=dtype)


@torch.library.custom_op("tersor::dequantize", mutates_args=())
def dequantize(q: Tensor, scale: float, zero_point: int) -> Tensor:
    """ONNX's DequantizeLinear with one scale."""
    return (q.to(torch.float32) - zero_point) * scale


@dequantize.register_fake
def _(q: Tensor, scale: float, zero_point: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("tersor::dequantize_axis", mutates_args=())
def dequantize_axis(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """ONNX's DequantizeLinear of weights: one scale, one per channel, or one per block of a row.

    Args:
        q: Integers.
        scale: Of no axis; of one, as long as `axis` of `q`; or of as many as `q`, where `axis` is
            cut into blocks of equal length.
        zero_point: Of the shape of `scale`, or None for zeros.
        axis: Of the channels, or the one that is cut.
    """
    return widened(q, scale, zero_point, axis)


@dequantize_axis.register_fake
def _(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    return torch.empty_like(q, dtype=torch.float32)


@torch.library.custom_op("tersor::global_average_pool", mutates_args=())
def global_average_pool(x: Tensor) -> Tensor:
    """ONNX's GlobalAveragePool: the mean over all axes but the first two, which are kept."""
    return x.mean(list(range(2, x.dim())), keepdim=True)


@global_average_pool.register_fake
def _(x: Tensor) -> Tensor:
    return x.new_empty([*x.shape[:2], *[1] * (x.dim() - 2)])


def pool(x: Tensor) -> Tensor:
    """Mean over all axes but the first two, which stay."""
    result: Tensor = global_average_pool(x)
    return result


@torch.library.custom_op("tersor::dynamic_linear", mutates_args=())
def dynamic_linear(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """ONNX's DynamicQuantizeLinear and MatMulInteger.

    Args:
        x: `[..., in]`.
        weight: `[in, out]`, int8.
        scale: `[out]` or `[]`.
        bias: `[out]`.
    """
    low, high = x.amin().clamp(max=0), x.amax().clamp(min=0)
    step = (high - low) / 255
    step = torch.where(step == 0, torch.ones_like(step), step)
    zero_point = torch.round(-low / step).clamp(0, 255)
    q = (torch.round(x / step) + zero_point).clamp(0, 255) - zero_point
    y = (q.double() @ weight.double()).float() * (step * scale)
    return y if bias is None else y + bias


@dynamic_linear.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    return x.new_empty([*x.shape[:-1], weight.shape[1]])


def widened(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    """Compute `(q - zero_point) * scale` in float32; see `dequantize_axis`."""
    wide = q.to(torch.float32)
    if scale.dim() == q.dim() and scale.dim() > 1:  # blocks
        blocks = scale.shape[axis]
        wide = torch.unflatten(wide, axis, (blocks, -1))
        if zero_point is not None:
            wide = wide - zero_point.to(torch.float32).unsqueeze(axis + 1)
        return (wide * scale.unsqueeze(axis + 1)).flatten(axis, axis + 1)
    if scale.dim() == 1:
        shape = [1] * q.dim()
        shape[axis] = -1
        scale = scale.view(shape)
        zero_point = None if zero_point is None else zero_point.view(shape)
    if zero_point is not None:
        wide = wide - zero_point.to(torch.float32)
    return wide * scale


def _round_to_onnx(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    result: Tensor = dequantize(quantize(x, scale, zero_point, dtype), scale, zero_point)
    return result


def _widen_in_onnx(q: Tensor, scale: Tensor, zero_point: Tensor | None, axis: int) -> Tensor:
    result: Tensor = dequantize_axis(q, scale, zero_point, axis)
    return result


def _round_to_torch(x: Tensor, scale: float, zero_point: int, dtype: torch.dtype) -> Tensor:
    low, high = RANGES[dtype]
    # fake_quantize_per_tensor_affine would do it in one pass, but torch.export cannot trace it
    q = torch.clamp(torch.round(x * (1 / scale)) + zero_point, low, high)
    return (q - zero_point) * scale


def made(q: Tensor, scale: float) -> Tensor:
    """Widen a constant of zero point 0."""
    result: Tensor = dequantize(q, scale, 0)
    return result


def clamped_sixth(x: Tensor) -> Tensor:
    """`relu6(x) / 6` by what eight bits hold: 0 to 6 going in, 0 to 1 coming out."""
    result: Tensor = dequantize(quantize(x, 6 / 255, 0, torch.uint8), 1 / 255, 0)
    return result


ONNX = Dialect(
    _round_to_onnx, _widen_in_onnx, is_fused=True, spells_activations=True, rounds_for_floats=True
)
"""Operators of our own, for each of which the ONNX exporter has a word; for ONNX Runtime, whose
integer kernels give integers."""
OPENVINO = Dialect(
    _round_to_onnx, _widen_in_onnx, is_fused=True, spells_activations=False, rounds_for_floats=False
)
"""As ONNX; OpenVINO computes any activation on its way out of an integer product. What it gives
that is rounded, and then joined with a float tensor, comes out wrong by several steps (2026.4)."""
TORCH = Dialect(
    _round_to_torch, widened, is_fused=False, spells_activations=False, rounds_for_floats=True
)
"""Operators of plain torch."""
