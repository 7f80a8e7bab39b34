"""Puts a teacher beside training data; where samples stay the same, its answers are remembered."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from compress.progress import Progress
from compress.spec.training import DistillConfig, TrainingConfig
from compress.train.allocator import kept_memory
from compress.train.data import TrainingData
from compress.train.loading import Loader
from compress.train.objective import Batch
from compress.train.teacher import Teacher

_FEW = 4
"""Samples that a way of computing is tried on."""


def teach(
    data: TrainingData,
    teacher: Teacher,
    config: TrainingConfig,
    *,
    device: torch.device,
    scratch: Path,
    progress: Progress,
    span: tuple[float, float] = (0.0, 0.0),
) -> TrainingData:
    """Return the data with the teacher's answers.

    Without random changes to the samples each has one answer, which is computed once. With such
    changes only the samples that are kept back have. Answers that are to be met as they are, in a
    regression or by the teacher's own quantized self, are computed in float32; classes that are
    softened as the student computes.

    Args:
        data: Samples.
        teacher: Whoever answers.
        config: How the student will be trained.
        device: Where.
        scratch: An existing folder, for the answers; it must outlive the training.
        progress: Is told; the stage `train` has begun.
        span: Part of the stage that this takes.
    """
    changes = set(config.augment) - {"none"}
    softened = isinstance(config, DistillConfig) and config.loss != "mse"
    how = config if changes or softened else replace(config, amp="off")
    few = data.reader().read(data.training[:_FEW], with_answers=False)
    machine = teacher.settle(few.inputs, how, device)
    rows = data.validation if changes else np.union1d(data.training, data.validation)
    size = max(1, config.batch_size // config.gradient_accumulation)
    start, end = span

    def batches() -> Iterator[tuple[np.ndarray, Batch]]:
        return Loader(data, machine, size).every(rows)

    def tell(done: int) -> None:
        progress.part(
            start + (end - start) * done / len(rows), f"teacher answering {done}/{len(rows)}"
        )

    with kept_memory():
        remembers = len(rows) > 0 and teacher.remember(
            batches, data.dataset.samples, len(rows), scratch, tell
        )
    if not remembers and not changes:
        progress.note(
            "The teacher answers anew in each step: its answers do not fit the disk, hang on the "
            "other samples of a batch, or differ in shape from batch to batch."
        )
    return data.taught_by(teacher)
