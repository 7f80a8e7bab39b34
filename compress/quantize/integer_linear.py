"""The linear layer that int8 files for GPUs are made of; as the others, it needs no Tersor."""

# annotations are not postponed: torch.jit reads those of classes as they are
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.quantize.modules import StoredLayer
from compress.quantize.rounding import Integers


class IntegerLinear(StoredLayer):
    """`x @ weight.T + bias` in int8 by the kernels that GPUs have for it, in any float type.

    Each row of `x` is divided by its largest magnitude on each call, as in `DynamicLinear`.

    Attributes:
        integers: `[out, in]`, int8.
        scale: `[out]`, float32; what a step of these is worth.
        outer_bias: `[out]`, float32; empty without a bias.
    """

    integers: Tensor
    scale: Tensor
    outer_bias: Tensor

    def __init__(self, weight: Integers, bias: Tensor | None) -> None:
        """Take a symmetric weight over; without a bias, none is added."""
        super().__init__("int8")
        self.out_features = int(weight.values.shape[0])
        self.has_bias = bias is not None
        self.register_buffer("integers", weight.values)
        self.register_buffer("scale", weight.scale)
        self.register_buffer("outer_bias", torch.zeros(0) if bias is None else bias.clone())

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, in the type of `x`."""
        rows = x.reshape(-1, x.shape[-1])
        step = rows.abs().amax(1, keepdim=True).float().clamp_min(1e-30) / 127
        whole = (rows / step).round().to(torch.int8)
        count = whole.shape[0]
        if count < 32:  # the kernel takes no fewer than 17
            whole = F.pad(whole, [0, 0, 0, 32 - count])
        product = torch._int_mm(whole, self.integers.t())[:count].float() * step * self.scale
        if self.has_bias:
            product = product + self.outer_bias
        shape = list(x.shape[:-1]) + [self.out_features]  # noqa: RUF005 torch.jit unpacks none
        return product.to(x.dtype).view(shape)
