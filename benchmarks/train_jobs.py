"""Jobs that the tables of `train.py` run: files, the engine as a worker calls it, its figures."""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks.images import Images, Residual, trained
from compress.export.builtins import forget_builtins_
from compress.pipeline import run
from compress.result import Inputs, Result
from compress.spec import EngineSpec

STUDENTS = 3  # as many times narrower, and some nine times smaller, than the teacher
TEACHER_EPOCHS = 8
BATCH = 128


class Watch:
    """A sink that keeps the seconds each stage took, and warnings."""

    def __init__(self) -> None:
        self._began: tuple[str, float] | None = None
        self.seconds: dict[str, float] = {}

    def stage(self, stage: str, message: str) -> None:
        now = time.perf_counter()
        if self._began is not None:
            name, began = self._began
            self.seconds[name] = self.seconds.get(name, 0.0) + now - began
        self._began = (stage, now)

    def progress(self, fraction: float, message: str) -> None:
        pass

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        if level == "warning":
            print(f"  ! {message}", file=sys.stderr)


class Bench:
    """Files that the tables share, and a way to run a job on them.

    Attributes:
        width: Of teachers.
    """

    width = 24

    def __init__(self, images: Images, folder: Path, threads: int) -> None:
        self.images, self.folder, self.threads = images, folder, threads
        self.train = self._data("train.npz", images.train, images.train_label)
        self.test = self._data("test.npz", images.test, images.test_label)
        self.unlabelled = folder / "unlabelled.npz"
        np.savez(self.unlabelled, input=images.train.numpy())

    def _data(self, name: str, pictures: torch.Tensor, labels: torch.Tensor) -> Path:
        np.savez(self.folder / name, input=pictures.numpy(), label=labels.numpy())
        return self.folder / name

    def save(self, name: str, model: nn.Module) -> Path:
        forget_builtins_()
        torch.jit.script(model.eval()).save(self.folder / name)
        return self.folder / name

    def job(
        self, method: str, config: Any, model: Path, *, seed: int = 0, **files: Path
    ) -> tuple[Result, Watch, Path]:
        """Run a job; return its figures, its times, and its first file."""
        watch = Watch()
        out = Path(tempfile.mkdtemp(dir=self.folder))
        spec = EngineSpec(method=method, config=config, seed=seed, threads=self.threads)  # type: ignore[arg-type]
        result = run(spec, Inputs(model=model, evaluation=self.test, **files), watch, out)
        return result, watch, out / result.artifacts[0].name


def points(result: Result) -> float:
    """Top-1 of the first file, in percent."""
    quality = result.artifacts[0].quality
    assert quality is not None
    return 100 * quality.value


def before(result: Result) -> float:
    assert result.baseline.quality is not None
    return 100 * result.baseline.quality.value


def spread(values: list[float]) -> str:
    """Mean, standard deviation, and what they are of."""
    each = ", ".join(f"{value:.2f}" for value in values)
    return f"{statistics.mean(values):.2f} % +- {statistics.stdev(values):.2f}   ({each})"


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def teacher_of(bench: Bench) -> Path:
    model = trained(Residual, "clothes", bench.images, TEACHER_EPOCHS, bench.width)
    return bench.save("teacher.pt", model)


def student_of(bench: Bench, seed: int) -> Path:
    torch.manual_seed(seed)
    return bench.save(f"student{seed}.pt", Residual(bench.width // STUDENTS))
