"""Integer weights as bytes that a finished file keeps, and the operators that widen them.

Each row is its integers and, at its end, scale and offset: the layout of torch's quantized
embeddings, `embedding_bag_byte_unpack` (float32 scale and offset) and `embedding_bag_4bit_unpack`
(two integers to a byte, the first in the low bits; float16). It is the same on every processor, and
widening takes vector instructions: a fourth of the time of a multiplication in torch, a fiftieth
for four bits. The kernels that multiply packed weights directly (`_weight_int8pack_mm`,
`_weight_int4pack_mm_for_cpu`) want float16 units or a layout that depends on the processor; without
them the first was 40 times slower than float.
"""

# annotations are not postponed: torch.jit reads those of classes as they are
import math

import torch
from torch import Tensor, nn

from compress.quantize.rounding import Integers


def pack_rows(integers: Integers, bits: int) -> tuple[Tensor, float]:
    """Return rows of bytes, and what their widened values must be multiplied with.

    Args:
        integers: For 8 bits symmetric or not; for 4 bits from 0 to 15, of even length.
        bits: 8 or 4.

    Returns:
        `[rows, length + 8]` or `[rows, length / 2 + 4]`, uint8; a power of two, and 1 but for
        weights so small that their scales would lose bits in float16.
    """
    values, scale = integers.values, integers.scale
    zero_point = integers.zero_point
    if bits == 8:
        if values.dtype == torch.int8:
            values = (values.to(torch.int16) + 128).to(torch.uint8)
            zero_point = zero_point + 128
        ends = torch.stack([scale, -zero_point.float() * scale], dim=1)
        return torch.cat([values, ends.view(torch.uint8)], dim=1).contiguous(), 1.0
    gain = _gain(scale)
    scale = scale / gain
    halves = torch.stack([scale, -zero_point.float() * scale], dim=1).half()
    packed = values[:, 0::2] | (values[:, 1::2] << 4)
    return torch.cat([packed, halves.view(torch.uint8)], dim=1).contiguous(), gain


def unpack_rows(rows: Tensor, bits: int, gain: float = 1.0) -> Integers:
    """Return what `pack_rows` was given, with uint8 values for both widths.

    Args:
        rows: `[rows, bytes]`.
        bits: 8 or 4.
        gain: As `pack_rows` returned it.
    """
    size = 8 if bits == 8 else 4
    body, ends = rows[:, :-size], rows[:, -size:].contiguous()
    pairs = ends.view(torch.float32 if bits == 8 else torch.float16).float()
    scale, offset = pairs[:, 0], pairs[:, 1]
    zero_point = (-offset / scale).round().long()
    if bits == 8:
        return Integers(body.contiguous(), scale * gain, zero_point)
    values = torch.stack([body & 15, body >> 4], dim=-1).flatten(1)
    return Integers(values, scale * gain, zero_point)


def _gain(scale: Tensor) -> float:
    """Return a power of two that lifts the scales into float16's normal range, if need be."""
    if float(scale.min()) >= 2.0**-13 and float(scale.max()) * 15 <= 2.0**15:
        return 1.0
    return 2.0 ** (math.floor(math.log2(float(scale.max()))) - 10)


class PackedRows(nn.Module):
    """A weight in integers that widens itself: `forward(like)` gives it in float32.

    Attributes:
        rows: `[rows, bytes]`, uint8; see `pack_rows`.
        bits: 8 or 4.
        shape: Of the weight; its rows, one behind the other and padded, are the bytes' rows.
    """

    rows: Tensor

    def __init__(self, integers: Integers, bits: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        rows, gain = pack_rows(integers, bits)
        self.register_buffer("rows", rows)
        self.bits = bits
        self.gain = gain
        self.shape = list(shape)
        self.channels = shape[0]
        self.width = math.prod(shape[1:])

    def forward(self, like: Tensor) -> Tensor:
        """Return the weight.

        `like` is any activation. Freezing folds what depends on constants alone, and would write
        the widened weight into the file.
        """
        rows = self.rows.to(like.device)
        if self.bits == 8:
            wide = torch.ops.quantized.embedding_bag_byte_unpack(rows)
        else:
            wide = torch.ops.quantized.embedding_bag_4bit_unpack(rows)
        if self.gain != 1.0:
            wide = wide * self.gain
        weight: Tensor = wide.view(self.channels, -1)[:, : self.width].reshape(self.shape)
        return weight

    def integers(self) -> Integers:
        """Return the rows' integers, uint8, with scales and zero points; padding included."""
        return unpack_rows(self.rows, self.bits, self.gain)


class StoredFloat(nn.Module):
    """A weight in a narrower floating-point type, or as it is; widens itself as `PackedRows`."""

    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight.detach())

    def forward(self, like: Tensor) -> Tensor:
        """Return the weight in the type of `like`."""
        return self.weight.type_as(like)
