"""VGG, SqueezeNet, DenseNet; and ConvNeXt, which looks back on them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress.zoo.blocks import ChannelNorm, Permute


class VGG(nn.Module):
    """Simonyan and Zisserman 2014: sixteen layers, with BatchNorm.

    `full=False` keeps six narrow convolutions. The pooling to 7 x 7 frees the image's size.
    """

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        plan = [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]
        hidden, dense = (512, 4096) if full else (32, 64)
        layers: list[nn.Module] = []
        inside = 3
        for width in plan if full else [16, 16, 0, 24, 24, 0, 32, 32, 0]:
            if width == 0:
                layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
            else:
                layers += [
                    nn.Conv2d(inside, width, kernel_size=3, padding=1),
                    nn.BatchNorm2d(width),
                    nn.ReLU(inplace=True),
                ]
                inside = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        self.classifier = nn.Sequential(
            nn.Linear(hidden * 7 * 7, dense),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(dense, dense),
            nn.ReLU(True),
            nn.Dropout(p=0.5),
            nn.Linear(dense, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class Fire(nn.Module):
    def __init__(self, inside: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(inside, squeezed, kernel_size=1)
        self.squeeze_activation = nn.ReLU(inplace=True)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, kernel_size=1)
        self.expand1x1_activation = nn.ReLU(inplace=True)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, kernel_size=3, padding=1)
        self.expand3x3_activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze_activation(self.squeeze(x))
        small = self.expand1x1_activation(self.expand1x1(x))
        return torch.cat([small, self.expand3x3_activation(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Iandola et al. 2016, version 1.1; its pooling rounds up."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        plan = [(16, 64), (16, 64), 0, (32, 128), (32, 128), 0,
                (48, 192), (48, 192), (64, 256), (64, 256)]  # fmt: skip
        layers: list[nn.Module] = [nn.Conv2d(3, 64, kernel_size=3, stride=2), nn.ReLU(inplace=True)]
        layers.append(nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
        inside = 64
        for step in plan if full else plan[:4]:
            if isinstance(step, int):
                layers.append(nn.MaxPool2d(kernel_size=3, stride=2, ceil_mode=True))
            else:
                layers.append(Fire(inside, *step))
                inside = 2 * step[1]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.5),
            nn.Conv2d(inside, classes, kernel_size=1),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((1, 1)),
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.flatten(self.classifier(self.features(x)), 1)


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inside, 4 * growth, kernel_size=1, bias=False)
        self.norm2 = nn.BatchNorm2d(4 * growth)
        self.relu2 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(4 * growth, growth, kernel_size=3, padding=1, bias=False)
        self.drop_rate = 0.1

    def forward(self, features: list[Tensor]) -> Tensor:
        narrow = self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))
        new = self.conv2(self.relu2(self.norm2(narrow)))
        if self.drop_rate > 0:
            new = F.dropout(new, p=self.drop_rate, training=self.training)
        return new


class DenseBlock(nn.ModuleDict):
    def __init__(self, depth: int, inside: int, growth: int) -> None:
        super().__init__()
        for index in range(depth):
            self.add_module(f"denselayer{index + 1}", DenseLayer(inside + index * growth, growth))

    def forward(self, first: Tensor) -> Tensor:
        features = [first]
        for _, layer in self.items():
            features.append(layer(features))
        return torch.cat(features, 1)


class DenseNet(nn.Module):
    """Huang et al. 2016; by default the 121 layers."""

    def __init__(
        self,
        depths: tuple[int, ...] = (6, 12, 24, 16),
        growth: int = 32,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        inside = 2 * growth
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(3, inside, 7, 2, 3, bias=False))
        self.features.add_module("norm0", nn.BatchNorm2d(inside))
        self.features.add_module("relu0", nn.ReLU(inplace=True))
        self.features.add_module("pool0", nn.MaxPool2d(kernel_size=3, stride=2, padding=1))
        for index, depth in enumerate(depths):
            self.features.add_module(f"denseblock{index + 1}", DenseBlock(depth, inside, growth))
            inside += depth * growth
            if index < len(depths) - 1:
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(inside))
                transition.add_module("relu", nn.ReLU(inplace=True))
                inside //= 2
                transition.add_module("conv", nn.Conv2d(2 * inside, inside, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(kernel_size=2, stride=2))
                self.features.add_module(f"transition{index + 1}", transition)
        self.features.add_module(f"norm{len(depths) + 1}", nn.BatchNorm2d(inside))
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        out = F.relu(self.features(x), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.classifier(torch.flatten(out, 1))


class ConvNeXtBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.block = nn.Sequential(
            nn.Conv2d(width, width, kernel_size=7, padding=3, groups=width),
            Permute([0, 2, 3, 1]),
            nn.LayerNorm(width, eps=1e-6),
            nn.Linear(width, 4 * width),
            nn.GELU(),
            nn.Linear(4 * width, width),
            Permute([0, 3, 1, 2]),
        )
        self.layer_scale = nn.Parameter(torch.rand(width, 1, 1) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        result = self.layer_scale * self.block(x)
        result += x
        return result


class ConvNeXt(nn.Module):
    """Liu et al. 2022; by default the tiny one."""

    def __init__(
        self,
        widths: tuple[int, ...] = (96, 192, 384, 768),
        depths: tuple[int, ...] = (3, 3, 9, 3),
        classes: int = 1000,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [
            nn.Sequential(nn.Conv2d(3, widths[0], 4, 4), ChannelNorm(widths[0], eps=1e-6))
        ]
        inside = widths[0]
        for width, depth in zip(widths, depths, strict=True):
            if width != inside:
                layers.append(
                    nn.Sequential(ChannelNorm(inside, eps=1e-6), nn.Conv2d(inside, width, 2, 2))
                )
            layers.append(nn.Sequential(*(ConvNeXtBlock(width) for _ in range(depth))))
            inside = width
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            ChannelNorm(inside, eps=1e-6), nn.Flatten(1), nn.Linear(inside, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.avgpool(self.features(x)))
