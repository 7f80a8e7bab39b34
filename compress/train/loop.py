"""The training loop, the same for every loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.errors import LabelMismatch, NothingToTrain
from compress.progress import Progress
from compress.spec.training import DEFAULT_EPOCHS, TrainingConfig
from compress.train.allocator import kept_memory
from compress.train.checkpoint import CheckpointFile
from compress.train.data import TrainingData
from compress.train.machine import bring_home, choose_machine, steady
from compress.train.objective import Objective
from compress.train.optimizing import check_rates
from compress.train.run import Run
from compress.train.telling import Teller

_FEW = 4
"""Samples that a way of computing is tried on."""
_PHASES = {"distill": 1, "qat": 2, "finetune": 3}
"""Tell the random numbers of phases apart."""


@dataclass(frozen=True, kw_only=True)
class Trained:
    """What became of a run.

    Attributes:
        epochs: Done; fewer than asked for where training stopped early.
        steps: Done.
        curve: A row per epoch: `phase`, `epoch`, `step`, `loss`, `parts`, `learning_rate`,
            `images_per_s`, `validation_loss` and `accuracy`; the last two may be None.
        final: The row of the epoch whose weights were kept; of epoch 0, without a loss, where the
            weights that training began with were better than all later ones.
        resumed_from: The step that an earlier process had come to, or None.
        seconds: Spent on steps, by all processes.
        images_per_s: Samples per second of these.
    """

    epochs: int
    steps: int
    curve: list[dict[str, Any]]
    final: dict[str, Any]
    resumed_from: int | None
    seconds: float
    images_per_s: float


def fit(
    trainee: nn.Module,
    objective: Objective,
    data: TrainingData,
    config: TrainingConfig,
    *,
    phase: str,
    seed: int,
    device: torch.device,
    checkpoints: Path | None,
    progress: Progress,
    on_step: Callable[[int, float], None] = lambda step, epoch: None,
    span: tuple[float, float] = (0.0, 1.0),
) -> Trained:
    """Train a model in place; it ends in eval mode, on the processor.

    On a processor two runs with the same seed and threads give the same weights, bit for bit, and
    so does one that was killed and started again.

    Args:
        trainee: On the processor; its parameters that require gradients learn.
        objective: What is made small; its parameters learn, too.
        data: Samples, and a teacher if the objective needs one.
        config: How.
        phase: `distill`, `qat` or `finetune`; names the checkpoint and is told in events.
        seed: Of dropout; the order of the samples hangs on the data's own.
        device: Where to compute.
        checkpoints: An existing folder that outlives the process, or None.
        progress: Is told; the stage `train` has begun.
        on_step: Is called before each step with its number and the epochs passed, as a fraction,
            when the model is in train mode. It sets what holds from then on, whatever came before:
            after a restart, the first call is for a later step.
        span: Part of the stage that this takes.

    Raises:
        NothingToTrain: No parameter requires a gradient.
        LabelMismatch: The objective needs labels and there are none.
        InvalidSpec: A batch larger than the data, or settings that leave nothing to do.
        TrainingDiverged: The loss is infinite or NaN.
        ModelFailed: The model does not run in train mode.
        OutOfMemory: Not even two samples at a time fit on the GPU.
    """
    if not any(parameter.requires_grad for parameter in trainee.parameters()):
        raise NothingToTrain("The model has no parameter that training could change.")
    if objective.needs_labels and not data.has_labels:
        raise LabelMismatch(
            "The loss needs labels; add an array 'label' to the training dataset, or choose a loss "
            "that goes by the teacher alone."
        )
    data.check_batch_size(config.batch_size)
    per_epoch = data.batches_per_epoch(config.batch_size)
    steps = config.steps or (config.epochs or DEFAULT_EPOCHS) * per_epoch
    warning = check_rates(config, steps)
    if warning is not None:
        progress.warn(warning)
    few = data.reader().read(data.training[:_FEW], with_answers=False)
    machine = choose_machine(trainee, few.inputs, config, device)
    if config.amp == "bf16" and not machine.bf16:
        progress.warn("The model does not run in bfloat16, so it is trained in float32.")
    seeded = torch.random.fork_rng(devices=[device] if device.type == "cuda" else [])
    with kept_memory(), steady(device), seeded:
        torch.manual_seed(seed + (_PHASES.get(phase, 0) << 32))
        run = Run(trainee, objective, data, config, machine, steps, phase, progress, on_step)
        file = CheckpointFile(checkpoints, phase, run.fingerprint(seed))
        try:
            resumed_from = run.resume(file)
            run.train(file, Teller(progress, span, steps, per_epoch))
            run.keep()
        finally:
            bring_home(trainee)
    return Trained(
        epochs=len(run.curve),
        steps=run.step,
        curve=run.curve,
        final=run.kept_row(),
        resumed_from=resumed_from,
        seconds=run.figures.total_s,
        images_per_s=run.figures.images_per_s,
    )
