"""Nets for small devices: MobileNet V1 to V3, EfficientNet, ShuffleNet V2."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress.zoo.blocks import Activation, ConvNorm, SqueezeExcite, divisible


def relu6() -> nn.Module:
    return nn.ReLU6(inplace=True)


def hardswish() -> nn.Module:
    return nn.Hardswish(inplace=True)


def silu() -> nn.Module:
    return nn.SiLU(inplace=True)


class MobileNetV1(nn.Module):
    """Howard et al. 2017: depthwise, then pointwise."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
                (1024, 2), (1024, 1)]  # fmt: skip
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2)]
        inside = 32
        for outside, stride in plan if full else plan[:4]:
            layers += [
                ConvNorm(inside, inside, 3, stride, groups=inside),
                ConvNorm(inside, outside, 1),
            ]
            inside = outside
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(inside, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean(dim=[2, 3]))


class InvertedResidual(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inside * expand
        layers: list[nn.Module] = []
        if expand != 1:
            layers.append(ConvNorm(inside, hidden, 1, activation=relu6))
        layers += [
            ConvNorm(hidden, hidden, 3, stride, groups=hidden, activation=relu6),
            nn.Conv2d(hidden, outside, 1, bias=False),
            nn.BatchNorm2d(outside),
        ]
        self.conv = nn.Sequential(*layers)
        self.use_res = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        if self.use_res:
            return x + self.conv(x)
        return self.conv(x)


class MobileNetV2(nn.Module):
    """Sandler et al. 2018; `full=False` keeps three blocks."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
                (6, 160, 3, 2), (6, 320, 1, 1)]  # fmt: skip
        features: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=relu6)]
        inside = 32
        for expand, outside, repeats, first_stride in plan if full else plan[:2]:
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                features.append(InvertedResidual(inside, outside, stride, expand))
                inside = outside
        last = 1280 if full else 64
        features.append(ConvNorm(inside, last, 1, activation=relu6))
        self.features = nn.Sequential(*features)
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x)
        x = F.adaptive_avg_pool2d(x, (1, 1))
        return self.classifier(torch.flatten(x, 1))


class MobileBlock(nn.Module):
    """Expand, depthwise, squeeze and excite, project: of MobileNetV3 and of EfficientNet."""

    def __init__(
        self,
        inside: int,
        expanded: int,
        outside: int,
        kernel: int,
        stride: int,
        activation: Activation,
        excite: nn.Module | None,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if expanded != inside:
            layers.append(ConvNorm(inside, expanded, 1, activation=activation))
        layers.append(
            ConvNorm(expanded, expanded, kernel, stride, groups=expanded, activation=activation)
        )
        if excite is not None:
            layers.append(excite)
        layers.append(ConvNorm(expanded, outside, 1, activation=None))
        self.block = nn.Sequential(*layers)
        self.residual = stride == 1 and inside == outside

    def forward(self, x: Tensor) -> Tensor:
        result = self.block(x)
        if self.residual:
            result += x
        return result


class MobileNetV3(nn.Module):
    """Howard et al. 2019, the large one; `full=False` keeps five blocks."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        # expanded, outside, kernel, stride, excited, hard-swish
        plan = [
            (16, 16, 3, 1, False, False), (64, 24, 3, 2, False, False),
            (72, 24, 3, 1, False, False), (72, 40, 5, 2, True, False),
            (120, 40, 5, 1, True, False), (120, 40, 5, 1, True, False),
            (240, 80, 3, 2, False, True), (200, 80, 3, 1, False, True),
            (184, 80, 3, 1, False, True), (184, 80, 3, 1, False, True),
            (480, 112, 3, 1, True, True), (672, 112, 3, 1, True, True),
            (672, 160, 5, 2, True, True), (960, 160, 5, 1, True, True),
            (960, 160, 5, 1, True, True),
        ]  # fmt: skip
        layers: list[nn.Module] = [ConvNorm(3, 16, 3, 2, activation=hardswish)]
        inside = 16
        for expanded, outside, kernel, stride, excited, hard in plan if full else plan[2:7]:
            excite = (
                SqueezeExcite(expanded, divisible(expanded // 4), gate=nn.Hardsigmoid)
                if excited
                else None
            )
            activation: Activation = hardswish if hard else nn.ReLU
            layers.append(
                MobileBlock(inside, expanded, outside, kernel, stride, activation, excite)
            )
            inside = outside
        layers.append(ConvNorm(inside, 6 * inside, 1, activation=hardswish))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        last = 1280 if full else 64
        self.classifier = nn.Sequential(
            nn.Linear(6 * inside, last),
            nn.Hardswish(inplace=True),
            nn.Dropout(p=0.2, inplace=True),
            nn.Linear(last, classes),
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


class EfficientNet(nn.Module):
    """Tan and Le 2019, B0; `full=False` keeps one block of each of four stages."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        # expand, kernel, stride, outside, repeats
        plan = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 2), (6, 5, 2, 40, 2), (6, 3, 2, 80, 3),
                (6, 5, 1, 112, 3), (6, 5, 2, 192, 4), (6, 3, 1, 320, 1)]  # fmt: skip
        if not full:
            plan = [(1, 3, 1, 16, 1), (6, 3, 2, 24, 1), (6, 5, 2, 40, 2)]
        layers: list[nn.Module] = [ConvNorm(3, 32, 3, 2, activation=silu)]
        inside = 32
        for expand, kernel, first_stride, outside, repeats in plan:
            stage: list[nn.Module] = []
            for repeat in range(repeats):
                stride = first_stride if repeat == 0 else 1
                expanded = inside * expand
                excite = SqueezeExcite(expanded, max(1, inside // 4), activation=silu)
                stage.append(MobileBlock(inside, expanded, outside, kernel, stride, silu, excite))
                inside = outside
            layers.append(nn.Sequential(*stage))
        layers.append(ConvNorm(inside, 4 * inside, 1, activation=silu))
        self.features = nn.Sequential(*layers)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Sequential(
            nn.Dropout(p=0.2, inplace=True), nn.Linear(4 * inside, classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        x = self.avgpool(self.features(x))
        return self.classifier(torch.flatten(x, 1))


def shuffle_channels(x: Tensor, groups: int) -> Tensor:
    batch, channels, height, width = x.size()
    x = x.view(batch, groups, channels // groups, height, width)
    x = torch.transpose(x, 1, 2).contiguous()
    return x.view(batch, channels, height, width)


class ShuffleBlock(nn.Module):
    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.stride = stride
        half = outside // 2
        self.branch1 = nn.Sequential()
        if stride > 1:
            self.branch1 = nn.Sequential(
                ConvNorm(inside, inside, 3, stride, groups=inside, activation=None),
                ConvNorm(inside, half, 1),
            )
        self.branch2 = nn.Sequential(
            ConvNorm(inside if stride > 1 else half, half, 1),
            ConvNorm(half, half, 3, stride, groups=half, activation=None),
            ConvNorm(half, half, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        if self.stride == 1:
            left, right = x.chunk(2, dim=1)
            out = torch.cat((left, self.branch2(right)), dim=1)
        else:
            out = torch.cat((self.branch1(x), self.branch2(x)), dim=1)
        return shuffle_channels(out, 2)


class ShuffleNetV2(nn.Module):
    """Ma et al. 2018, at 1.0x; `full=False` has two blocks a stage."""

    def __init__(self, classes: int = 1000, *, full: bool = True) -> None:
        super().__init__()
        self.conv1 = ConvNorm(3, 24, 3, 2)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        inside = 24
        stages: list[nn.Module] = []
        widths, depths = ((116, 232, 464), (4, 8, 4)) if full else ((32, 64, 96), (2, 2, 2))
        for outside, depth in zip(widths, depths, strict=True):
            blocks = [ShuffleBlock(inside, outside, 2)]
            blocks += [ShuffleBlock(outside, outside, 1) for _ in range(depth - 1)]
            stages.append(nn.Sequential(*blocks))
            inside = outside
        self.stage2, self.stage3, self.stage4 = stages
        last = 1024 if full else 64
        self.conv5 = ConvNorm(inside, last, 1)
        self.fc = nn.Linear(last, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage4(self.stage3(self.stage2(self.maxpool(self.conv1(x)))))
        return self.fc(self.conv5(x).mean([2, 3]))
