"""What the nets share: blocks of a few layers, and weights that hide nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Activation = Callable[[], nn.Module]


def settle(model: nn.Module, seed: int = 0) -> nn.Module:
    """Gives BatchNorm random statistics and affine terms, and puts the model into eval mode.

    Fresh ones (mean 0, variance 1) would hide a normalisation that was lost or folded wrongly.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d):
            assert module.running_mean is not None
            assert module.running_var is not None
            width = module.num_features
            module.running_mean.copy_(torch.randn(width, generator=generator) * 0.1)
            module.running_var.copy_(torch.rand(width, generator=generator) + 0.5)
            with torch.no_grad():
                module.weight.copy_(torch.rand(width, generator=generator) * 0.5 + 0.75)
                module.bias.copy_(torch.randn(width, generator=generator) * 0.1)
    return model.eval()


def relu() -> nn.Module:
    return nn.ReLU(inplace=True)


class ConvNorm(nn.Sequential):
    """Convolution that keeps the size, BatchNorm, activation; `activation=None` leaves it out."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int = 3,
        stride: int = 1,
        *,
        groups: int = 1,
        activation: Activation | None = relu,
    ) -> None:
        layers = [
            nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False),
            nn.BatchNorm2d(outside),
        ]
        super().__init__(*layers, *([activation()] if activation is not None else []))


class SqueezeExcite(nn.Module):
    """Hu et al. 2017: channels weighed by what the whole image holds."""

    def __init__(
        self,
        width: int,
        squeezed: int,
        activation: Activation = nn.ReLU,
        gate: Activation = nn.Sigmoid,
    ) -> None:
        super().__init__()
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)
        self.activation = activation()
        self.scale_activation = gate()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.activation(self.fc1(self.avgpool(x)))
        return self.scale_activation(self.fc2(scale)) * x


class Permute(nn.Module):
    def __init__(self, dims: list[int]) -> None:
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return torch.permute(x, self.dims)


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of [batch, channels, height, width]."""

    def forward(self, input: Tensor) -> Tensor:
        x = input.permute(0, 2, 3, 1)
        x = F.layer_norm(x, self.normalized_shape, self.weight, self.bias, self.eps)
        return x.permute(0, 3, 1, 2)


def divisible(value: float, divisor: int = 8) -> int:
    """The multiple of `divisor` next to a scaled width, and not under nine tenths of it."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded
