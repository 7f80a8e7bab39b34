"""A model of structured arguments, without postponed annotations, which TorchScript cannot read."""

from typing import NamedTuple

from torch import Tensor, nn


class Inner(NamedTuple):
    sizes: tuple[Tensor, int]


class Outer(NamedTuple):
    ids: Tensor
    inner: Inner
    mask: Tensor | None


class Structured(nn.Module):
    """Takes a named tuple with another inside, a dict, an optional tensor and a number."""

    def forward(
        self,
        batch: Outer,
        more: dict[str, Tensor],
        bias: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        out = (batch.ids + batch.inner.sizes[0] * batch.inner.sizes[1] + more["x"]) * scale
        return out if bias is None else out + bias
