"""A model of structured arguments, without postponed annotations, which TorchScript cannot read."""

from typing import NamedTuple

import torch
from torch import Tensor, nn


class Inner(NamedTuple):
    sizes: tuple[Tensor, int]


class Outer(NamedTuple):
    ids: Tensor
    inner: Inner
    mask: Tensor | None


class Answer(NamedTuple):
    logits: Tensor
    hidden: tuple[Tensor, dict[str, Tensor]]
    width: int
    missing: Tensor | None


class Structured(nn.Module):
    """Takes a named tuple with another inside, a dict, an optional tensor and a number."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(4, 16), nn.Linear(16, 3)

    def forward(
        self,
        batch: Outer,
        more: dict[str, Tensor],
        bias: Tensor | None = None,
        scale: float = 1.0,
    ) -> Answer:
        x = batch.ids + batch.inner.sizes[0] * batch.inner.sizes[1] + more["x"]
        mask = batch.mask  # TorchScript refines variables alone
        if mask is not None:
            x = x * mask
        hidden = torch.relu(self.first(x)) * scale
        logits = self.last(hidden)
        if bias is not None:
            logits = logits + bias
        return Answer(logits, (hidden, {"sum": hidden.sum(1)}), int(x.size(1)), None)
