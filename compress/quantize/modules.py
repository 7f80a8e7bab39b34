"""The layers that dynamic and weight-only graphs are made of.

All are small, compile to TorchScript, and compute with operators of torch alone, so that a finished
file needs no Tersor. What holds packed weights keeps them as torch serializes them, plain int8 and
scales, and packs them for the processor that loads the file.
"""

# annotations are not postponed: torch.jit reads those of classes as they are
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.packing import PackedRows, unpack_rows
from compress.quantize.rounding import Integers

StoredPrecision = Literal["int8", "int4", "fp16", "bf16", "fp32"]


class StoredLayer(nn.Module):
    """A layer whose weights are stored in fewer bits than float32.

    Attributes:
        stored_as: What the layer table says.
    """

    def __init__(self, stored_as: StoredPrecision) -> None:
        super().__init__()
        self.stored_as = stored_as

    def stored_bytes(self) -> int:
        """Bytes of weights, scales and biases in a file."""
        return sum(int(value.nbytes) for value in [*self.parameters(), *self.buffers()])


class DynamicLinear(StoredLayer):
    """`x @ weight.T + bias` in int8; the range of `x` is found anew on each call.

    Activations take all eight bits, so the weights must be such that their products do not
    overflow; see `round_without_overflow`. torch takes one range for the whole tensor. By row, each
    row is divided by its largest magnitude before, and multiplied with it after: a token with
    outliers then spoils no other, and a sample's answer does not hang on its neighbours in the
    batch.

    Attributes:
        by_row: Whether it does so.
    """

    outer_bias: Tensor

    def __init__(
        self, weight: Integers, bias: Tensor | None, *, per_channel: bool, by_row: bool = False
    ) -> None:
        """Pack.

        Args:
            weight: `[out, in]`, int8; one scale for all rows where not per channel.
            bias: `[out]`, float32.
            per_channel: Whether each row has a scale of its own.
            by_row: Whether activations have a range for each row.
        """
        super().__init__("int8")
        self.by_row = by_row
        self.has_bias = bias is not None
        inner = None if bias is None or by_row else bias.detach().clone()
        self.packed = torch.ops.quantized.linear_prepack(
            quantized_tensor(weight, per_channel=per_channel), inner
        )
        outer = bias.detach().clone() if bias is not None and by_row else torch.zeros(0)
        self.register_buffer("outer_bias", outer)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, float32."""
        if not self.by_row:
            answer: Tensor = torch.ops.quantized.linear_dynamic(x, self.packed, False)
            return answer
        # two operators, and vectorized: a norm of order infinity takes ten times as long
        peak = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
        product: Tensor = torch.ops.quantized.linear_dynamic(x / peak, self.packed, False)
        if self.has_bias:
            return torch.addcmul(self.outer_bias, product, peak)
        return product * peak

    def int8_weight(self) -> Tensor:
        """Return `[out, in]`, int8."""
        weight: Tensor = self._unpacked()[0].int_repr()
        return weight

    def weight_scale(self) -> Tensor:
        """Return `[out]`, or `[]` where there is one scale for all; float32."""
        return scale_of(self._unpacked()[0])

    def bias(self) -> Tensor | None:
        """Return `[out]`, float32."""
        return self.outer_bias if self.by_row and self.has_bias else self._unpacked()[1]

    def stored_bytes(self) -> int:
        """Bytes of weights, scales and bias."""
        weight, inner = self._unpacked()
        biases = [self.outer_bias] if inner is None else [self.outer_bias, inner]
        return quantized_bytes(weight) + sum(int(bias.nbytes) for bias in biases)

    def _unpacked(self) -> tuple[Tensor, Tensor | None]:
        unpacked: tuple[Tensor, Tensor | None] = torch.ops.quantized.linear_unpack(self.packed)
        return unpacked


class WeightOnlyLinear(StoredLayer):
    """`x @ weight.T + bias` in float32 with a weight in integers, widened on each call.

    Attributes:
        weight: `weight(x)` is `[out, in]`; `weight.integers()` are the integers.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedRows, bias: Tensor | None) -> None:
        super().__init__(_integer_type(weight))
        self.weight = weight
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, float32."""
        return F.linear(x, self.weight(x), self.bias)


class Convolution(StoredLayer):
    """What convolutions of one to three dimensions have in common, also transposed ones.

    Attributes:
        transposed: Whether it is one.
        padding: Before and after each axis; what the end gets beyond it is in `uneven`.
    """

    def __init__(self, layer: nn.Module, stored_as: StoredPrecision) -> None:
        """Take over the settings of a float layer.

        Args:
            layer: `nn.Conv1d` to `nn.ConvTranspose3d`, with zeros for padding.
            stored_as: What the layer table says.
        """
        super().__init__(stored_as)
        settings: Any = layer
        self.transposed = bool(settings.transposed)
        self.stride = list(settings.stride)
        before, after = _paddings(settings)
        self.padding = before
        self.is_uneven = before != after
        self.uneven = [
            side
            for low, high in zip(reversed(before), reversed(after), strict=True)
            for side in (0, high - low)
        ]
        self.dilation = list(settings.dilation)
        self.output_padding = list(settings.output_padding)
        self.groups = int(settings.groups)

    def convolve(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return what the float layer would with these weights."""
        if self.is_uneven:  # 'same' with an even kernel
            x = F.pad(x, self.uneven)
        return torch.convolution(
            x,
            weight,
            bias,
            self.stride,
            self.padding,
            self.dilation,
            self.transposed,
            self.output_padding,
            self.groups,
        )


class WeightOnlyConv(Convolution):
    """A convolution in float32 with a weight in integers, widened on each call.

    Attributes:
        weight: `weight(x)` is of the float layer's shape.
    """

    bias: Tensor | None

    def __init__(self, weight: PackedRows, layer: nn.Module) -> None:
        super().__init__(layer, _integer_type(weight))
        self.weight = weight
        bias: Any = layer.bias
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return what the float layer would, float32."""
        return self.convolve(x, self.weight(x), self.bias)


class RowTable(nn.Module):
    """Looks rows up in a table of integers, and widens those alone.

    Attributes:
        rows: `[indices, bytes]`: of each index its groups, one behind the other.
        width: Of a row in floats.
    """

    rows: Tensor

    def __init__(self, weight: PackedRows) -> None:
        super().__init__()
        self.register_buffer("rows", weight.rows.view(weight.channels, -1))
        self.width = weight.width
        self.bits = weight.bits
        self.gain = weight.gain
        self.group_bytes = int(weight.rows.shape[1])
        self.padded = weight.integers().values.numel() // weight.channels

    def forward(self, indices: Tensor) -> Tensor:
        """Return `[n, width]` of indices `[n]`, float32."""
        rows = F.embedding(indices, self.rows).view(-1, self.group_bytes)
        if self.bits == 8:
            wide = torch.ops.quantized.embedding_bag_byte_unpack(rows)
        else:
            wide = torch.ops.quantized.embedding_bag_4bit_unpack(rows)
        if self.gain != 1.0:
            wide = wide * self.gain
        found: Tensor = wide.view(-1, self.padded)[:, : self.width]
        return found

    def integers(self) -> Integers:
        """Return the groups' integers, uint8, with scales and zero points; padding included."""
        return unpack_rows(self.rows.view(-1, self.group_bytes), self.bits, self.gain)


class QuantizedEmbedding(StoredLayer):
    """A table of integers; what is looked up is widened.

    Attributes:
        table: `table.integers()` are the whole table's.
    """

    def __init__(self, weight: PackedRows) -> None:
        super().__init__(_integer_type(weight))
        self.table = RowTable(weight)

    def forward(self, indices: Tensor) -> Tensor:
        """Return `[..., width]` of indices `[...]`, float32."""
        found: Tensor = self.table(indices.reshape(-1))
        return found.view(indices.shape + (self.table.width,))  # noqa: RUF005


class Bag(StoredLayer):
    """What `nn.EmbeddingBag` does, of rows that were looked up one by one.

    Attributes:
        table: `forward(indices)` looks rows up.
        mode: `sum`, `mean` or `max`.
        padding: An index that counts for nothing; -1 for none.
    """

    def __init__(
        self, table: nn.Module, layer: nn.EmbeddingBag, stored_as: StoredPrecision
    ) -> None:
        super().__init__(stored_as)
        self.table = table
        self.mode = layer.mode
        self.include_last_offset = bool(layer.include_last_offset)
        self.padding = -1 if layer.padding_idx is None else int(layer.padding_idx)

    def forward(
        self,
        indices: Tensor,
        offsets: Tensor | None = None,
        per_sample_weights: Tensor | None = None,
    ) -> Tensor:
        """Return `[bags, width]`, float32, as `nn.EmbeddingBag` does."""
        flat = indices.reshape(-1)
        rows = self.table(flat)
        places = torch.arange(flat.numel(), device=flat.device, dtype=flat.dtype)
        padding: int | None = None
        if self.padding >= 0:
            padding = flat.numel()
            places = torch.where(flat == self.padding, padding, places)
            rows = torch.cat([rows, torch.zeros_like(rows[:1])])
        return F.embedding_bag(
            places.view(indices.shape),
            rows,
            offsets,
            mode=self.mode,
            per_sample_weights=per_sample_weights,
            include_last_offset=self.include_last_offset,
            padding_idx=padding,
        )


class QuantizedEmbeddingBag(Bag):
    """Bags over a table of integers: `table.integers()` are the whole table's."""

    def __init__(self, weight: PackedRows, layer: nn.EmbeddingBag) -> None:
        super().__init__(RowTable(weight), layer, _integer_type(weight))


def quantized_tensor(weight: Integers, *, per_channel: bool) -> Tensor:
    """Return int8 rows as a tensor of torch's quantized type, as packing takes it."""
    if not per_channel:
        return torch._make_per_tensor_quantized_tensor(weight.values, float(weight.scale[0]), 0)
    zeros = torch.zeros_like(weight.zero_point)
    return torch._make_per_channel_quantized_tensor(weight.values, weight.scale, zeros, 0)


def scale_of(weight: Tensor) -> Tensor:
    """Return `[out]`, or `[]` of a quantized tensor with one scale; float32."""
    if weight.qscheme() == torch.per_channel_affine:
        return weight.q_per_channel_scales().float()
    return torch.tensor(weight.q_scale())


def quantized_bytes(weight: Tensor) -> int:
    """Bytes of a quantized tensor: integers, and scales and zero points of channels."""
    total = int(weight.numel())
    if weight.qscheme() == torch.per_channel_affine:
        total += int(weight.q_per_channel_scales().nbytes)
        total += int(weight.q_per_channel_zero_points().nbytes)
    return total


def _integer_type(weight: PackedRows) -> StoredPrecision:
    return "int8" if weight.bits == 8 else "int4"


def _paddings(settings: Any) -> tuple[list[int], list[int]]:
    """Return what a convolution pads before and after each axis."""
    if not isinstance(settings.padding, str):
        return list(settings.padding), list(settings.padding)
    both = list(settings._reversed_padding_repeated_twice)[::-1]
    return both[1::2], both[0::2]
