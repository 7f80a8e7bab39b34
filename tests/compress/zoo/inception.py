"""GoogLeNet and Inception v3, with the heads that only training uses, and with their warnings."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# In the functional form, since TorchScript cannot read annotations that are strings.
GoogLeNetOutputs = NamedTuple(  # noqa: UP014
    "GoogLeNetOutputs",
    [("logits", Tensor), ("aux_logits2", Tensor | None), ("aux_logits1", Tensor | None)],
)
InceptionOutputs = NamedTuple(  # noqa: UP014
    "InceptionOutputs", [("logits", Tensor), ("aux_logits", Tensor | None)]
)


class Conv(nn.Module):
    """Convolution, BatchNorm, ReLU; the kernel may be a row or a column."""

    def __init__(
        self,
        inside: int,
        outside: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: int | tuple[int, int] = 0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inside, outside, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(outside, eps=0.001)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)), inplace=True)


def normalise_again(x: Tensor) -> Tensor:
    """From the statistics of torchvision's images to those of the original weights."""
    red = torch.unsqueeze(x[:, 0], 1) * (0.229 / 0.5) + (0.485 - 0.5) / 0.5
    green = torch.unsqueeze(x[:, 1], 1) * (0.224 / 0.5) + (0.456 - 0.5) / 0.5
    blue = torch.unsqueeze(x[:, 2], 1) * (0.225 / 0.5) + (0.406 - 0.5) / 0.5
    return torch.cat((red, green, blue), 1)


class GoogLeNetBlock(nn.Module):
    def __init__(self, inside: int, widths: tuple[int, int, int, int, int, int]) -> None:
        super().__init__()
        one, three_in, three, five_in, five, pooled = widths
        self.branch1 = Conv(inside, one)
        self.branch2 = nn.Sequential(Conv(inside, three_in), Conv(three_in, three, 3, padding=1))
        self.branch3 = nn.Sequential(Conv(inside, five_in), Conv(five_in, five, 3, padding=1))
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, 1, ceil_mode=True), Conv(inside, pooled))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class AuxHead(nn.Module):
    def __init__(self, inside: int, classes: int, width: int) -> None:
        super().__init__()
        self.conv = Conv(inside, width)
        self.fc1 = nn.Linear(width * 16, 8 * width)
        self.fc2 = nn.Linear(8 * width, classes)
        self.dropout = nn.Dropout(p=0.7)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.flatten(self.conv(F.adaptive_avg_pool2d(x, (4, 4))), 1)
        return self.fc2(self.dropout(F.relu(self.fc1(x), inplace=True)))


class GoogLeNet(nn.Module):
    """Szegedy et al. 2014. `slim` divides all widths."""

    def __init__(self, classes: int = 1000, slim: int = 1) -> None:
        super().__init__()
        plan = {
            "3a": (64, 96, 128, 16, 32, 32), "3b": (128, 128, 192, 32, 96, 64),
            "4a": (192, 96, 208, 16, 48, 64), "4b": (160, 112, 224, 24, 64, 64),
            "4c": (128, 128, 256, 24, 64, 64), "4d": (112, 144, 288, 32, 64, 64),
            "4e": (256, 160, 320, 32, 128, 128), "5a": (256, 160, 320, 32, 128, 128),
            "5b": (384, 192, 384, 48, 128, 128),
        }  # fmt: skip
        self.conv1 = Conv(3, 64 // slim, 7, stride=2, padding=3)
        self.maxpool1 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.conv2 = Conv(64 // slim, 64 // slim)
        self.conv3 = Conv(64 // slim, 192 // slim, 3, padding=1)
        self.maxpool2 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        inside = 192 // slim
        outputs: dict[str, int] = {}
        for name, widths in plan.items():
            slimmed = tuple(width // slim for width in widths)
            self.add_module(f"inception{name}", GoogLeNetBlock(inside, slimmed))
            inside = slimmed[0] + slimmed[2] + slimmed[4] + slimmed[5]
            outputs[name] = inside
        self.maxpool3 = nn.MaxPool2d(3, stride=2, ceil_mode=True)
        self.maxpool4 = nn.MaxPool2d(2, stride=2, ceil_mode=True)
        self.aux1: nn.Module | None = AuxHead(outputs["4a"], classes, 128 // slim)
        self.aux2: nn.Module | None = AuxHead(outputs["4d"], classes, 128 // slim)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(inside, classes)

    def _forward(self, x: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        x = self.maxpool1(self.conv1(normalise_again(x)))
        x = self.maxpool2(self.conv3(self.conv2(x)))
        x = self.inception4a(self.maxpool3(self.inception3b(self.inception3a(x))))
        aux1: Tensor | None = None
        if self.aux1 is not None and self.training:
            aux1 = self.aux1(x)
        x = self.inception4d(self.inception4c(self.inception4b(x)))
        aux2: Tensor | None = None
        if self.aux2 is not None and self.training:
            aux2 = self.aux2(x)
        x = self.inception5b(self.inception5a(self.maxpool4(self.inception4e(x))))
        x = self.dropout(torch.flatten(self.avgpool(x), 1))
        return self.fc(x), aux2, aux1

    @torch.jit.unused
    def eager_outputs(
        self, x: Tensor, aux2: Tensor | None, aux1: Tensor | None
    ) -> GoogLeNetOutputs | Tensor:
        return GoogLeNetOutputs(x, aux2, aux1) if self.training else x

    def forward(self, x: Tensor) -> GoogLeNetOutputs:
        x, aux2, aux1 = self._forward(x)
        defined = self.training and self.aux1 is not None
        if torch.jit.is_scripting():
            if not defined:
                warnings.warn(
                    "Scripted GoogleNet always returns GoogleNetOutputs Tuple", stacklevel=2
                )
            return GoogLeNetOutputs(x, aux2, aux1)
        return self.eager_outputs(x, aux2, aux1)


class InceptionA(nn.Module):
    def __init__(self, inside: int, pooled: int, slim: int) -> None:
        super().__init__()
        self.branch1x1 = Conv(inside, 64 // slim)
        self.branch5x5_1 = Conv(inside, 48 // slim)
        self.branch5x5_2 = Conv(48 // slim, 64 // slim, 5, padding=2)
        self.branch3x3dbl_1 = Conv(inside, 64 // slim)
        self.branch3x3dbl_2 = Conv(64 // slim, 96 // slim, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96 // slim, 96 // slim, 3, padding=1)
        self.branch_pool = Conv(inside, pooled // slim)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, double, pooled], 1)


class InceptionB(nn.Module):
    def __init__(self, inside: int, slim: int) -> None:
        super().__init__()
        self.branch3x3 = Conv(inside, 384 // slim, 3, stride=2)
        self.branch3x3dbl_1 = Conv(inside, 64 // slim)
        self.branch3x3dbl_2 = Conv(64 // slim, 96 // slim, 3, padding=1)
        self.branch3x3dbl_3 = Conv(96 // slim, 96 // slim, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, F.max_pool2d(x, 3, stride=2)], 1)


class InceptionC(nn.Module):
    """Kernels of seven, as a row and a column."""

    def __init__(self, inside: int, width: int, slim: int) -> None:
        super().__init__()
        out, width = 192 // slim, width // slim
        self.branch1x1 = Conv(inside, out)
        self.branch7x7 = nn.Sequential(
            Conv(inside, width),
            Conv(width, width, (1, 7), padding=(0, 3)),
            Conv(width, out, (7, 1), padding=(3, 0)),
        )
        self.branch7x7dbl = nn.Sequential(
            Conv(inside, width),
            Conv(width, width, (7, 1), padding=(3, 0)),
            Conv(width, width, (1, 7), padding=(0, 3)),
            Conv(width, width, (7, 1), padding=(3, 0)),
            Conv(width, out, (1, 7), padding=(0, 3)),
        )
        self.branch_pool = Conv(inside, out)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), self.branch7x7(x), self.branch7x7dbl(x), pooled], 1)


class InceptionD(nn.Module):
    def __init__(self, inside: int, slim: int) -> None:
        super().__init__()
        out = 192 // slim
        self.branch3x3_1 = Conv(inside, out)
        self.branch3x3_2 = Conv(out, 320 // slim, 3, stride=2)
        self.branch7x7x3_1 = Conv(inside, out)
        self.branch7x7x3_2 = Conv(out, out, (1, 7), padding=(0, 3))
        self.branch7x7x3_3 = Conv(out, out, (7, 1), padding=(3, 0))
        self.branch7x7x3_4 = Conv(out, out, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        three = self.branch3x3_2(self.branch3x3_1(x))
        return torch.cat([three, self.branch7x7x3_4(seven), F.max_pool2d(x, 3, stride=2)], 1)


class InceptionE(nn.Module):
    """Branches that branch again."""

    def __init__(self, inside: int, slim: int) -> None:
        super().__init__()
        wide = 384 // slim
        self.branch1x1 = Conv(inside, 320 // slim)
        self.branch3x3_1 = Conv(inside, wide)
        self.branch3x3_2a = Conv(wide, wide, (1, 3), padding=(0, 1))
        self.branch3x3_2b = Conv(wide, wide, (3, 1), padding=(1, 0))
        self.branch3x3dbl_1 = Conv(inside, 448 // slim)
        self.branch3x3dbl_2 = Conv(448 // slim, wide, 3, padding=1)
        self.branch3x3dbl_3a = Conv(wide, wide, (1, 3), padding=(0, 1))
        self.branch3x3dbl_3b = Conv(wide, wide, (3, 1), padding=(1, 0))
        self.branch_pool = Conv(inside, 192 // slim)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        three = torch.cat([self.branch3x3_2a(three), self.branch3x3_2b(three)], 1)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        double = torch.cat([self.branch3x3dbl_3a(double), self.branch3x3dbl_3b(double)], 1)
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.branch1x1(x), three, double, pooled], 1)


class InceptionV3(nn.Module):
    """Szegedy et al. 2015. `slim` divides all widths."""

    def __init__(self, classes: int = 1000, slim: int = 1) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = Conv(3, 32 // slim, 3, stride=2)
        self.Conv2d_2a_3x3 = Conv(32 // slim, 32 // slim, 3)
        self.Conv2d_2b_3x3 = Conv(32 // slim, 64 // slim, 3, padding=1)
        self.maxpool1 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Conv2d_3b_1x1 = Conv(64 // slim, 80 // slim)
        self.Conv2d_4a_3x3 = Conv(80 // slim, 192 // slim, 3)
        self.maxpool2 = nn.MaxPool2d(kernel_size=3, stride=2)
        self.Mixed_5b = InceptionA(192 // slim, 32, slim)
        self.Mixed_5c = InceptionA(256 // slim, 64, slim)
        self.Mixed_5d = InceptionA(288 // slim, 64, slim)
        self.Mixed_6a = InceptionB(288 // slim, slim)
        self.Mixed_6b = InceptionC(768 // slim, 128, slim)
        self.Mixed_6c = InceptionC(768 // slim, 160, slim)
        self.Mixed_6d = InceptionC(768 // slim, 160, slim)
        self.Mixed_6e = InceptionC(768 // slim, 192, slim)
        self.AuxLogits: nn.Module | None = AuxHead(768 // slim, classes, 128 // slim)
        self.Mixed_7a = InceptionD(768 // slim, slim)
        self.Mixed_7b = InceptionE(1280 // slim, slim)
        self.Mixed_7c = InceptionE(2048 // slim, slim)
        self.avgpool = nn.AdaptiveAvgPool2d((1, 1))
        self.dropout = nn.Dropout()
        self.fc = nn.Linear(2048 // slim, classes)

    @torch.jit.unused
    def eager_outputs(self, x: Tensor, aux: Tensor | None) -> InceptionOutputs | Tensor:
        return InceptionOutputs(x, aux) if self.training else x

    def forward(self, x: Tensor) -> InceptionOutputs:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(normalise_again(x))))
        x = self.maxpool2(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(self.maxpool1(x))))
        x = self.Mixed_6a(self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(x))))
        x = self.Mixed_6e(self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(x))))
        aux: Tensor | None = None
        if self.AuxLogits is not None and self.training:
            aux = self.AuxLogits(x)
        x = self.dropout(self.avgpool(self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(x)))))
        x = self.fc(torch.flatten(x, 1))
        defined = self.training and self.AuxLogits is not None
        if torch.jit.is_scripting():
            if not defined:
                warnings.warn("Scripted Inception3 always returns Inception3 Tuple", stacklevel=2)
            return InceptionOutputs(x, aux)
        return self.eager_outputs(x, aux)
