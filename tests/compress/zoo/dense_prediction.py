"""Nets with an output at every place: segmentation, detection, autoencoders."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tests.compress.zoo.blocks import ConvNorm, relu


class DoubleConv(nn.Sequential):
    def __init__(self, inside: int, outside: int) -> None:
        super().__init__(ConvNorm(inside, outside), ConvNorm(outside, outside))


class UpTo(nn.Module):
    """Twice as large, padded to the skip connection's size, joined with it."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(inside, outside, kernel_size=2, stride=2)
        self.conv = DoubleConv(2 * outside, outside)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = self.up(x)
        rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return self.conv(torch.cat([skip, x], dim=1))


class UNet(nn.Module):
    """Ronneberger et al. 2015, with BatchNorm; takes images of any size."""

    def __init__(self, width: int = 64, levels: int = 4, classes: int = 2) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(levels + 1)]
        self.inc = DoubleConv(3, width)
        self.downs = nn.ModuleList(
            nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b)) for a, b in itertools.pairwise(widths)
        )
        self.ups = nn.ModuleList(UpTo(2 * outside, outside) for outside in widths[-2::-1])
        self.outc = nn.Conv2d(width, classes, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        x = self.inc(image)
        skips = [x]
        for down in self.downs:
            x = down(x)
            skips.append(x)
        for index, up in enumerate(self.ups):
            x = up(x, skips[-2 - index])
        return self.outc(x)


class Pyramid(nn.Module):
    """Lin et al. 2016: each level takes in the coarser one, enlarged to its size."""

    def __init__(self, insides: list[int], width: int) -> None:
        super().__init__()
        self.inner_blocks = nn.ModuleList(nn.Conv2d(inside, width, 1) for inside in insides)
        self.layer_blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in insides)

    def forward(self, features: list[Tensor]) -> list[Tensor]:
        inner: list[Tensor] = []
        for index, block in enumerate(self.inner_blocks):
            inner.append(block(features[index]))
        last = inner[-1]
        merged = [last]
        for index in range(1, len(inner)):
            lateral = inner[len(inner) - 1 - index]
            last = lateral + F.interpolate(last, size=lateral.shape[-2:], mode="nearest")
            merged.insert(0, last)
        levels: list[Tensor] = []
        for index, block in enumerate(self.layer_blocks):
            levels.append(block(merged[index]))
        return levels


class RetinaHead(nn.Module):
    """Convolutions shared by all levels; answers [batch, anchors of all levels, outputs]."""

    def __init__(self, width: int, anchors: int, outputs: int, depth: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers += [nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(4, width), nn.ReLU()]
        self.conv = nn.Sequential(*layers)
        self.predict = nn.Conv2d(width, anchors * outputs, 3, padding=1)
        self.outputs = outputs

    def forward(self, features: list[Tensor]) -> Tensor:
        answers: list[Tensor] = []
        for x in features:
            answer = self.predict(self.conv(x))
            batch, _, height, width = answer.shape
            answer = answer.view(batch, -1, self.outputs, height, width)
            answer = answer.permute(0, 3, 4, 1, 2)
            answers.append(answer.reshape(batch, -1, self.outputs))
        return torch.cat(answers, dim=1)


class RetinaNet(nn.Module):
    """Lin et al. 2017, up to the raw answers for every anchor, as a dict."""

    def __init__(
        self, width: int = 256, stem: int = 64, depth: int = 4, classes: int = 91, anchors: int = 9
    ) -> None:
        super().__init__()
        self.stem = nn.Sequential(ConvNorm(3, stem, 7, 2), nn.MaxPool2d(3, 2, 1))
        widths = [2 * stem, 4 * stem, 8 * stem]
        self.stages = nn.ModuleList(
            nn.Sequential(ConvNorm(inside, outside, 3, 2), ConvNorm(outside, outside))
            for inside, outside in itertools.pairwise([stem, *widths])
        )
        self.fpn = Pyramid(widths, width)
        self.classification_head = RetinaHead(width, anchors, classes, depth)
        self.regression_head = RetinaHead(width, anchors, 4, depth)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        x = self.stem(image)
        features: list[Tensor] = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        pyramid = self.fpn(features)
        return {
            "cls_logits": self.classification_head(pyramid),
            "bbox_regression": self.regression_head(pyramid),
        }


class YoloHead(nn.Module):
    """Decodes one level to boxes in pixels, [batch, places, 5 + classes]."""

    def __init__(self, inside: int, stride: int, classes: int) -> None:
        super().__init__()
        self.stride = stride
        self.predict = nn.Conv2d(inside, 5 + classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        raw = self.predict(x).permute(0, 2, 3, 1)
        rows = torch.arange(raw.size(1), device=raw.device, dtype=raw.dtype)
        columns = torch.arange(raw.size(2), device=raw.device, dtype=raw.dtype)
        down, along = torch.meshgrid([rows, columns], indexing="ij")
        grid = torch.stack([along, down], dim=2)
        centre = (torch.sigmoid(raw[..., 0:2]) * 2.0 - 0.5 + grid) * self.stride
        size = (torch.sigmoid(raw[..., 2:4]) * 2.0) ** 2 * self.stride
        boxes = torch.cat([centre, size, raw[..., 4:].sigmoid()], dim=-1)
        return boxes.flatten(1, 2)


class YoloNet(nn.Module):
    """One-stage detector in the manner of YOLO: boxes of two levels, and the levels' features."""

    def __init__(self, width: int = 32, classes: int = 80) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            ConvNorm(3, width, 3, 2, activation=nn.SiLU),
            ConvNorm(width, 2 * width, 3, 2, activation=nn.SiLU),
            ConvNorm(2 * width, 4 * width, 3, 2, activation=nn.SiLU),
        )
        self.deep = ConvNorm(4 * width, 8 * width, 3, 2, activation=nn.SiLU)
        self.pool = nn.MaxPool2d(5, stride=1, padding=2)
        self.mix = ConvNorm(24 * width, 8 * width, 1, activation=nn.SiLU)
        self.upsample = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.join = ConvNorm(12 * width, 4 * width, 1, activation=nn.SiLU)
        self.fine = YoloHead(4 * width, 8, classes)
        self.coarse = YoloHead(8 * width, 16, classes)

    def forward(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        shallow = self.stem(image)
        deep = self.deep(shallow)
        once = self.pool(deep)
        deep = self.mix(torch.cat([deep, once, self.pool(once)], dim=1))
        shallow = self.join(torch.cat([self.upsample(deep), shallow], dim=1))
        boxes = torch.cat([self.fine(shallow), self.coarse(deep)], dim=1)
        return boxes, [shallow, deep]


class ConvAutoencoder(nn.Module):
    """To a narrow code and back."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1),
            nn.PReLU(width),
            nn.Conv2d(width, 2 * width, 3, stride=2, padding=1),
            nn.BatchNorm2d(2 * width),
            relu(),
            nn.Conv2d(2 * width, 4, 1),
        )
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(4, 2 * width, 3, stride=2, padding=1, output_padding=1),
            nn.InstanceNorm2d(2 * width, affine=True),
            nn.LeakyReLU(0.2),
            nn.ConvTranspose2d(2 * width, 3, 4, stride=2, padding=1),
            nn.Tanh(),
        )

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        code = self.encoder(image)
        return self.decoder(code), code


class VAE(nn.Module):
    """Kingma and Welling 2013; in eval mode the code is the mean."""

    def __init__(self, features: int = 784, hidden: int = 400, code: int = 20) -> None:
        super().__init__()
        self.encode = nn.Sequential(nn.Linear(features, hidden), nn.Softplus())
        self.mean = nn.Linear(hidden, code)
        self.log_variance = nn.Linear(hidden, code)
        self.decode = nn.Sequential(nn.Linear(code, hidden), nn.ELU(), nn.Linear(hidden, features))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.encode(x.flatten(1))
        mean, log_variance = self.mean(hidden), self.log_variance(hidden)
        code = mean
        if self.training:
            code = mean + torch.randn_like(mean) * torch.exp(0.5 * log_variance)
        decoded = torch.sigmoid(self.decode(code)).view_as(x)
        return {"decoded": decoded, "mean": mean, "log_variance": log_variance}
