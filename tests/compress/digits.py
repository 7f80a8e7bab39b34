"""scikit-learn's digits, and a small net trained on them."""

from __future__ import annotations

import functools

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress import zoo

_TRAINING = 1280


def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, held-out images and labels; shuffled once and for all."""
    bunch = load_digits()
    order = torch.randperm(len(bunch.target), generator=torch.Generator().manual_seed(0))
    pixels = torch.tensor(bunch.images, dtype=torch.float32)[order].unsqueeze(1) / 16
    labels = torch.tensor(bunch.target)[order]
    return pixels[:_TRAINING], labels[:_TRAINING], pixels[_TRAINING:], labels[_TRAINING:]


def train(model: nn.Module, *, epochs: int, rate: float) -> nn.Module:
    """Train on the digits, from a seed, and leave the world's random numbers as they were."""
    pixels, labels, _, _ = images()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        optimizer = torch.optim.Adam(model.train().parameters(), rate)
        for _ in range(epochs):
            for at in torch.randperm(len(pixels)).split(64):
                optimizer.zero_grad()
                F.cross_entropy(model(pixels[at]), labels[at]).backward()
                optimizer.step()
    return model.eval()


@functools.cache
def trained() -> nn.Module:
    """The zoo's small convolutional net."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = zoo.small_cnn()
    return train(model, epochs=8, rate=3e-3)
