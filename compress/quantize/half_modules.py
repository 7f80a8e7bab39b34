"""Layers whose weights are stored in 16 bits and widened where they are used.

They keep the names of the float layers' weights. Widening to the type of an activation, not to
float32 by name, keeps freezing from doing it once and for all and writing the result into the file.
"""

# annotations are not postponed: torch.jit reads those of classes as they are

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.modules import Bag, Convolution, StoredLayer, StoredPrecision

Narrow = Callable[[Tensor], Tensor]
"""From a float32 weight to one in 16 bits: the same one for the same weight."""


class HalfLinear(StoredLayer):
    """`nn.Linear`."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Linear, narrow: Narrow, stored_as: StoredPrecision) -> None:
        super().__init__(stored_as)
        _take(self, layer, narrow)

    def forward(self, x: Tensor) -> Tensor:
        """Return `[..., out]` of `[..., in]`, float32."""
        bias = self.bias
        if bias is not None:
            bias = bias.type_as(x)
        return F.linear(x, self.weight.type_as(x), bias)


class HalfConv(Convolution):
    """`nn.Conv1d` to `nn.ConvTranspose3d`, with zeros for padding."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, narrow: Narrow, stored_as: StoredPrecision) -> None:
        super().__init__(layer, stored_as)
        _take(self, layer, narrow)

    def forward(self, x: Tensor) -> Tensor:
        """Return what the float layer would, float32."""
        bias = self.bias
        if bias is not None:
            bias = bias.type_as(x)
        return self.convolve(x, self.weight.type_as(x), bias)


class HalfEmbedding(StoredLayer):
    """`nn.Embedding`: what is looked up is widened."""

    weight: Tensor

    def __init__(self, layer: nn.Module, narrow: Narrow, stored_as: StoredPrecision) -> None:
        super().__init__(stored_as)
        _take(self, layer, narrow)

    def forward(self, indices: Tensor) -> Tensor:
        """Return `[..., width]` of indices `[...]`, float32."""
        return F.embedding(indices, self.weight).float()


class HalfEmbeddingBag(Bag):
    """`nn.EmbeddingBag`: sums are of float32."""

    def __init__(self, layer: nn.EmbeddingBag, narrow: Narrow, stored_as: StoredPrecision) -> None:
        super().__init__(HalfEmbedding(layer, narrow, stored_as), layer, stored_as)


def _take(module: nn.Module, layer: nn.Module, narrow: Narrow) -> None:
    for name in ("weight", "bias"):
        value: Any = getattr(layer, name, None)
        kept = None if value is None else narrow(value)
        if isinstance(kept, nn.Parameter) or kept is None:
            module.register_parameter(name, kept)
        else:
            module.register_buffer(name, kept)
