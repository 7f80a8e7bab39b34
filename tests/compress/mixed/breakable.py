"""A trained net that int8 breaks: a few channels of an activation are far larger than the rest."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, nn

from tests.compress import digits

OUTLIERS = 3
"""Channels of `wide` that are blown up, and shrunk again by the weights of `narrow`."""
FACTOR = 3000.0


class Breakable(nn.Module):
    """Digits of 8 x 8 to ten classes."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Conv2d(1, 24, 3, padding=1)
        self.narrow = nn.Conv2d(24, 24, 3, padding=1)
        self.last = nn.Conv2d(24, 32, 3, stride=2, padding=1)
        self.head = nn.Linear(32 * 16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(x))
        x = torch.relu(self.narrow(x))
        x = torch.relu(self.last(x))
        return self.head(x.flatten(1))


@functools.cache
def breakable() -> nn.Module:
    """The trained net; relu lets a channel's scale move from one layer's weights to the next's."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Breakable()
    digits.train(net, epochs=12, rate=2e-3)
    with torch.no_grad():
        net.wide.weight[:OUTLIERS] *= FACTOR
        net.wide.bias[:OUTLIERS] *= FACTOR
        net.narrow.weight[:, :OUTLIERS] /= FACTOR
    return net
