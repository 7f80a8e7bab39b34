"""The int8 layers of `torch.ao`: what they hold, what they compute, and which are not right."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.nn import quantized as nnq
from torch.ao.nn.intrinsic import quantized as nniq
from torch.nn import functional as F

from compress.quantize.engines import engine_for
from compress.spec import Backend

# fbgemm's transposed kernels take one weight scale per tensor only (pytorch issue 47535)
TRANSPOSED_MODULES = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)

_ONEDNN_MAX_GROUPS = 100

_OPERATORS: dict[type[nn.Module], Any] = {
    nnq.Conv1d: torch.ops.quantized.conv1d,
    nnq.Conv2d: torch.ops.quantized.conv2d,
    nnq.Conv3d: torch.ops.quantized.conv3d,
    nniq.ConvReLU1d: torch.ops.quantized.conv1d_relu,
    nniq.ConvReLU2d: torch.ops.quantized.conv2d_relu,
    nniq.ConvReLU3d: torch.ops.quantized.conv3d_relu,
    nnq.ConvTranspose1d: torch.ops.quantized.conv_transpose1d,
    nnq.ConvTranspose2d: torch.ops.quantized.conv_transpose2d,
    nnq.ConvTranspose3d: torch.ops.quantized.conv_transpose3d,
    nnq.Linear: torch.ops.quantized.linear,
    nniq.LinearReLU: torch.ops.quantized.linear_relu,
}


@dataclass(frozen=True)
class PackedCall:
    """A quantized layer as one operator: `operator(x, packed, scale, zero_point)`."""

    operator: Any
    packed: Any
    scale: float
    zero_point: int


@dataclass(frozen=True)
class Span:
    """What an int8 scale reaches: from `low` to `high`, in steps."""

    low: float
    high: float
    step: float


def saturating_depthwise(module: nn.Module) -> bool:
    """Whether the x86 engine runs a convolution with fbgemm's depthwise kernel.

    That kernel adds pairs of products in 16 bits even where there is VNNI, so full-range
    activations times 8-bit weights saturate, off by up to a quarter of the range; 7-bit weights fit
    (2 * 255 * 64 < 2**15). Up to 100 groups go to oneDNN, which is exact.
    """
    return (
        isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
        and module.groups > _ONEDNN_MAX_GROUPS
        and module.groups == module.in_channels == module.out_channels
    )


def computes_wrongly(module: nn.Module, backend: Backend = "x86") -> bool:
    """Whether torch's int8 kernel for a convolution gives something else altogether.

    With VNNI, oneDNN takes those without output padding, and swaps input and output channels where
    they differ in number. fbgemm, which takes the others, and without VNNI all, reads foreign
    memory for 2 x 2 kernels that are not grouped. A file may run on either kind of processor.
    qnnpack is wrong in three dimensions, and cannot save what it has packed for them.
    """
    if backend == "arm":
        return isinstance(module, nn.Conv3d | nn.ConvTranspose3d)
    if not isinstance(module, TRANSPOSED_MODULES):
        return False
    if tuple(module.kernel_size) == (2, 2) and module.groups == 1:
        return True
    return not any(module.output_padding) and module.in_channels != module.out_channels


def is_int8(module: nn.Module) -> bool:
    """Whether a module holds int8 weights."""
    return isinstance(module, nnq.Conv1d | nnq.Conv2d | nnq.Conv3d | nnq.Linear) or (
        type(module) in _OPERATORS
    )


def is_rectified(module: nn.Module) -> bool:
    """Whether a quantized module also applies the relu that followed it.

    Without a relu operator too: an unsigned output whose zero point is 0 holds nothing below.
    """
    fused = (nniq.ConvReLU1d, nniq.ConvReLU2d, nniq.ConvReLU3d, nniq.LinearReLU)
    return isinstance(module, fused) or int(module.zero_point) == 0  # type: ignore[arg-type]


def product_inside(module: nn.Module) -> nn.Module:
    """Return the layer itself, of one that was fused with what follows it in a float graph."""
    return module[0] if isinstance(module, nn.Sequential) else module


def before_rounding(module: nn.Module, x: Tensor) -> Tensor | None:
    """Compute in float what an int8 layer does before it rounds and rectifies.

    Args:
        module: An int8 layer.
        x: Its input, int8 or float.

    Returns:
        Its output in float; None for a layer that pads with anything but zeros.
    """
    m: Any = module
    if getattr(m, "padding_mode", "zeros") != "zeros":
        return None
    x = x.dequantize() if x.is_quantized else x
    weight, bias = m.weight().dequantize(), m.bias()
    if isinstance(m, nnq.Linear):
        return F.linear(x, weight, bias)
    axes = weight.dim() - 2
    if isinstance(m, nnq.ConvTranspose1d | nnq.ConvTranspose2d | nnq.ConvTranspose3d):
        transposed = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)[axes - 1]
        return transposed(
            x, weight, bias, m.stride[:axes], m.padding[:axes], m.output_padding[:axes], m.groups,
            m.dilation[:axes],
        )  # fmt: skip
    plain = (F.conv1d, F.conv2d, F.conv3d)[axes - 1]
    return plain(
        x, weight, bias, m.stride[:axes], m.padding[:axes], m.dilation[:axes], m.groups
    )  # fmt: skip


def set_bias(module: nn.Module, shift: Tensor, backend: Backend) -> None:
    """Add `shift`, `[out]`, to the bias of an int8 layer."""
    m: Any = module
    bias = m.bias()
    with engine_for(backend):
        m.set_weight_bias(m.weight(), shift if bias is None else bias.detach() + shift)


def output_span(module: nn.Module) -> Span | None:
    """Return what values an int8 layer can give; None for one that is not int8."""
    if not is_int8(module):
        return None
    step, zero = float(module.scale), int(module.zero_point)  # type: ignore[arg-type]
    return Span(-zero * step, (255 - zero) * step, step)


def stored_bytes(module: nn.Module) -> int:
    """Bytes of an int8 module's weights, scales, zero points and bias."""
    weight, bias = module.weight(), module.bias()  # type: ignore[operator]
    total: int = weight.numel() * weight.element_size()
    if weight.qscheme() in (torch.per_channel_affine, torch.per_channel_symmetric):
        total += weight.q_per_channel_scales().nbytes + weight.q_per_channel_zero_points().nbytes
    return total + (0 if bias is None else bias.nbytes)


def packed_call(module: nn.Module) -> PackedCall | None:
    """Return the operator that a quantized module is a wrapper of, or None if it does more."""
    operator = _OPERATORS.get(type(module))
    if operator is None or getattr(module, "padding_mode", "zeros") != "zeros":
        return None
    packed: Any = module._packed_params
    packed = getattr(packed, "_packed_params", packed)  # Linear wraps its own once more
    return PackedCall(operator, packed, float(module.scale), int(module.zero_point))  # type: ignore[arg-type]
