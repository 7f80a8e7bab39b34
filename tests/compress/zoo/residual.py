"""ResNet, Wide ResNet, ResNeXt and RegNet."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.compress.zoo.blocks import ConvNorm, SqueezeExcite


class BasicBlock(nn.Module):
    expansion = 1

    def __init__(self, inside: int, width: int, stride: int = 1, *, groups: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, width, 3, stride, 1, groups=groups, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(width, width, 3, 1, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != width:
            self.downsample = ConvNorm(inside, width, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class Bottleneck(nn.Module):
    expansion = 4

    def __init__(
        self, inside: int, planes: int, stride: int = 1, *, groups: int = 1, base_width: int = 64
    ) -> None:
        super().__init__()
        outside = planes * 4
        width = int(planes * base_width / 64) * groups
        self.conv1 = nn.Conv2d(inside, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, 1, groups=groups, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outside, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outside)
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or inside != outside:
            self.downsample = ConvNorm(inside, outside, 1, stride, activation=None)

    def forward(self, x: Tensor) -> Tensor:
        identity = x
        out = self.relu(self.bn1(self.conv1(x)))
        out = self.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        if self.downsample is not None:
            identity = self.downsample(x)
        out += identity
        return self.relu(out)


class ResNet(nn.Module):
    """He et al. 2015; with groups ResNeXt (Xie et al. 2016), with a wide base Wide ResNet.

    Args:
        depths: Blocks of each of the four stages.
        bottleneck: Blocks of three convolutions instead of two.
        classes: Outputs.
        groups: Groups of the 3x3 convolution; with bottlenecks only.
        base_width: Width of a group where the stage is 64 wide; with bottlenecks only.
        width: Channels of the first stage.
    """

    def __init__(
        self,
        depths: list[int],
        *,
        bottleneck: bool,
        classes: int = 1000,
        groups: int = 1,
        base_width: int = 64,
        width: int = 64,
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside = width
        stages: list[nn.Module] = []
        for stage, depth in enumerate(depths):
            planes = width * 2**stage
            blocks: list[nn.Module] = []
            for block in range(depth):
                stride = 2 if block == 0 and stage > 0 else 1
                if bottleneck:
                    blocks.append(
                        Bottleneck(inside, planes, stride, groups=groups, base_width=base_width)
                    )
                    inside = planes * Bottleneck.expansion
                else:
                    blocks.append(BasicBlock(inside, planes, stride))
                    inside = planes
            stages.append(nn.Sequential(*blocks))
        self.layer1, self.layer2, self.layer3, self.layer4 = stages
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class RegNetBlock(nn.Module):
    """Bottleneck without a bottle's neck, with squeeze and excitation: the Y variant."""

    def __init__(self, inside: int, width: int, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj: nn.Module | None = None
        if stride != 1 or inside != width:
            self.proj = ConvNorm(inside, width, 1, stride, activation=None)
        self.f = nn.Sequential(
            ConvNorm(inside, width, 1),
            ConvNorm(width, width, 3, stride, groups=width // group_width),
            SqueezeExcite(width, max(1, round(0.25 * inside))),
            ConvNorm(width, width, 1, activation=None),
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        identity = x if self.proj is None else self.proj(x)
        return self.activation(identity + self.f(x))


class RegNet(nn.Module):
    """Radosavovic et al. 2020; widths and depths are those of RegNetY-400MF by default."""

    def __init__(
        self,
        widths: tuple[int, ...] = (48, 104, 208, 440),
        depths: tuple[int, ...] = (1, 3, 6, 6),
        group_width: int = 8,
        classes: int = 1000,
    ) -> None:
        super().__init__()
        self.stem = ConvNorm(3, 32, 3, 2)
        inside = 32
        stages: list[nn.Module] = []
        for width, depth in zip(widths, depths, strict=True):
            blocks = [RegNetBlock(inside, width, 2, group_width)]
            blocks += [RegNetBlock(width, width, 1, group_width) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            inside = width
        self.trunk_output = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.fc = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.trunk_output(self.stem(x)))
        return self.fc(x.flatten(start_dim=1))
