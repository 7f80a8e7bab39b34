"""Nets of a few layers, each with what is peculiar to a family, for tests that run many times."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class MLP(nn.Module):
    """Two hidden layers over flat features."""

    def __init__(self, features: int = 16, hidden: int = 32, classes: int = 4) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(features, hidden),
            nn.ReLU(),
            nn.Dropout(0.1),
            nn.Linear(hidden, hidden),
            nn.BatchNorm1d(hidden),
            nn.ReLU(inplace=True),
        )
        self.head = nn.Linear(hidden, classes)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.net(features))


class SmallCNN(nn.Module):
    """A digits-sized convolutional net."""

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(16)
        self.conv2 = nn.Conv2d(16, 32, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(32)
        self.dropout = nn.Dropout(0.25)
        self.fc1 = nn.Linear(32 * 4, 64)
        self.fc2 = nn.Linear(64, classes)

    def forward(self, image: Tensor) -> Tensor:
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(image))), 2)
        x = F.adaptive_avg_pool2d(F.relu(self.bn2(self.conv2(x))), 2)
        x = x.view(x.size(0), -1)
        return self.fc2(self.dropout(F.relu(self.fc1(x))))


class SqueezeExcite(nn.Module):
    def __init__(self, width: int, squeezed: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        scale = F.adaptive_avg_pool2d(x, 1)
        return x * F.hardsigmoid(self.fc2(F.relu(self.fc1(scale))))


class SENet(nn.Module):
    """MobileNetV3 style: hard-swish, squeeze and excitation, global mean."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, 1), nn.BatchNorm2d(16), nn.Hardswish())
        self.se = SqueezeExcite(16, 8)
        self.point = nn.Conv2d(16, 24, 1)
        self.act = nn.SiLU(inplace=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.act(self.point(self.se(self.stem(x)))).mean([2, 3]))


class InceptionBlock(nn.Module):
    """Four parallel branches, concatenated."""

    def __init__(self) -> None:
        super().__init__()
        self.branch1 = nn.Conv2d(3, 8, 1)
        self.branch3 = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, padding=1))
        self.branch5 = nn.Conv2d(3, 8, 5, padding=2)
        self.branch_pool = nn.Conv2d(3, 8, 1)
        self.bn = nn.BatchNorm2d(32, eps=0.001)
        self.fc = nn.Linear(32, 6)

    def forward(self, x: Tensor) -> Tensor:
        pooled = F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)
        branches = [self.branch1(x), self.branch3(x), self.branch5(x), self.branch_pool(pooled)]
        out = F.relu(self.bn(torch.cat(branches, 1)), inplace=True)
        out = F.adaptive_avg_pool2d(out, (1, 1))
        return self.fc(out.view(out.shape[0], -1))


class UNet(nn.Module):
    """Two levels, transposed convolution and bilinear upsampling, skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.down1 = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.down2 = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1), nn.LeakyReLU(0.1))
        self.bottom = nn.Conv2d(16, 16, 3, padding=1)
        self.up2 = nn.ConvTranspose2d(16, 16, 2, stride=2)
        self.mid = nn.Conv2d(32, 8, 3, padding=1)
        self.up1 = nn.Upsample(scale_factor=2.0, mode="bilinear", align_corners=False)
        self.head = nn.Conv2d(16, 2, 1)

    def forward(self, image: Tensor) -> Tensor:
        first = self.down1(image)
        second = self.down2(F.max_pool2d(first, 2))
        bottom = F.elu(self.bottom(F.max_pool2d(second, 2)))
        mid = F.gelu(self.mid(torch.cat([self.up2(bottom), second], dim=1)))
        return torch.sigmoid(self.head(torch.cat([self.up1(mid), first], dim=1)))


class DenseLayer(nn.Module):
    def __init__(self, inside: int, growth: int) -> None:
        super().__init__()
        self.norm1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv1 = nn.Conv2d(inside, growth, 3, padding=1, bias=False)

    def forward(self, features: list[Tensor]) -> Tensor:
        return self.conv1(self.relu1(self.norm1(torch.cat(features, 1))))


class DenseNet(nn.Module):
    """A block whose layers see the outputs of all before them."""

    def __init__(self, growth: int = 8, layers: int = 3) -> None:
        super().__init__()
        self.conv0 = nn.Conv2d(3, 16, 3, 2, 1, bias=False)
        self.layers = nn.ModuleList(DenseLayer(16 + i * growth, growth) for i in range(layers))
        self.norm = nn.BatchNorm2d(16 + layers * growth)
        self.fc = nn.Linear(16 + layers * growth, 7)

    def forward(self, x: Tensor) -> Tensor:
        features = [self.conv0(x)]
        for layer in self.layers:
            features.append(layer(features))
        out = F.relu(self.norm(torch.cat(features, 1)), inplace=True)
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(out, (1, 1)), 1))


class ShuffleNet(nn.Module):
    """Channel split and shuffle, grouped convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 2, 1)
        self.branch = nn.Sequential(
            nn.Conv2d(8, 8, 1, bias=False),
            nn.BatchNorm2d(8),
            nn.ReLU(inplace=True),
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False),
            nn.BatchNorm2d(8),
        )
        self.fc = nn.Linear(16, 3)

    def shuffle(self, x: Tensor, groups: int) -> Tensor:
        batch, channels, height, width = x.size()
        x = x.view(batch, groups, channels // groups, height, width)
        return torch.transpose(x, 1, 2).contiguous().view(batch, channels, height, width)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.stem(x).chunk(2, dim=1)
        out = self.shuffle(torch.cat((left, self.branch(right)), dim=1), 2)
        return self.fc(out.mean([2, 3]))
