"""Small nets and data to train on, and a run with few settings; shared by the tests of training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from compress.data import Dataset
from compress.progress import Progress
from compress.spec.training import TrainingConfig
from compress.train.data import TrainingData
from compress.train.loop import Trained, fit
from compress.train.objective import Objective, labels_alone
from tests.compress import digits
from tests.compress.sinks import Recorder

CPU = torch.device("cpu")


class Listener(Recorder):
    """Remembers the figures of training, too."""

    def __init__(self) -> None:
        super().__init__()
        self.figures: list[dict[str, Any]] = []

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        super().event(type, message, data, level)
        if type == "metrics":
            assert data is not None
            self.figures.append(dict(data))


def net(*, norm: bool = True, dropout: float = 0.0, seed: int = 0) -> nn.Module:
    """A small convolutional net for digits, fresh."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.BatchNorm2d(8) if norm else nn.Identity(),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.AdaptiveAvgPool2d(4),
            nn.Flatten(),
            nn.Linear(128, 10),
        )


def digit_data(samples: int = 320, *, fraction: float = 0.1, seed: int = 0) -> TrainingData:
    pixels, labels, _, _ = digits.images()
    dataset = Dataset([pixels[:samples].numpy()], ["input"], labels[:samples].numpy())
    return TrainingData.split(dataset, fraction, seed)


def rows(
    samples: int = 64, *, width: int = 6, classes: int = 3, label: np.ndarray | None = None
) -> Dataset:
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(samples, width)).astype("f4")
    ids = generator.integers(0, classes, samples)
    return Dataset([inputs], ["input"], ids if label is None else label)


def started(sink: Recorder) -> Progress:
    progress = Progress(sink, "trains")
    progress.stage("train", "training")
    return progress


def train(
    model: nn.Module,
    data: TrainingData,
    config: TrainingConfig,
    *,
    objective: Objective | None = None,
    sink: Recorder | None = None,
    checkpoints: Path | None = None,
    seed: int = 0,
    **more: Any,
) -> Trained:
    return fit(
        model,
        objective or labels_alone(),
        data,
        config,
        phase="distill",
        seed=seed,
        device=CPU,
        checkpoints=checkpoints,
        progress=started(sink or Recorder()),
        **more,
    )
