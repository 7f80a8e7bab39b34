"""Quantization-aware training of a lifted model, from the float one to the int8 graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.errors import LabelMismatch
from compress.lift import Lifted
from compress.measure.outputs import class_axis, primary_output
from compress.progress import Progress
from compress.quantize.drafting import Quantized
from compress.quantize.folding import fold_batch_norm
from compress.quantize.qat import QatModel, prepare_qat
from compress.spec import EngineSpec, Metric, QatConfig
from compress.spec.training import DEFAULT_EPOCHS
from compress.structure import map_tensors
from compress.train.augment import check_augmentations
from compress.train.data import TrainingData
from compress.train.distill import make_trainable
from compress.train.loop import Trained, fit
from compress.train.losses import look_like_probabilities
from compress.train.objective import AnswerObjective
from compress.train.refusing import tell_refusals
from compress.train.teacher import Teacher
from compress.train.teaching import teach

_TEACHING_SHARE = 0.05
"""Of the stage."""
_RANGES_SHARE, _NORMS_SHARE = 0.75, 0.5
"""Of all steps, until ranges and BatchNorm stay as they are."""
_RENEWALS = 10
"""Times that ranges are found anew while they are live."""
_ALPHAS = {"distill": 1.0, "task": 0.0, "both": 0.5}
_DISTANCES: tuple[Metric | None, ...] = ("mse", "mae")

Batches = Callable[[], Iterable[Sequence[Any]]]


@dataclass(frozen=True)
class QatOutcome:
    """What quantization-aware training gave.

    Attributes:
        quantized: The int8 graph, and the table of its layers.
        before: The model as it was before its first step, rounded as after calibration alone.
        trained: How it learned.
    """

    quantized: Quantized
    before: fx.GraphModule
    trained: Trained


def train_quantized(
    spec: EngineSpec,
    config: QatConfig,
    lifted: Lifted,
    data: TrainingData,
    calibration: Batches,
    example: Sequence[Any],
    probes: Sequence[Sequence[Any]],
    *,
    metric: Metric | None,
    device: torch.device,
    checkpoints: Path | None,
    scratch: Path,
    progress: Progress,
) -> QatOutcome:
    """Calibrate, train with rounding, and convert.

    Args:
        spec: The job; its backend and its seed count.
        config: Its settings.
        lifted: The float model, which is the teacher, too; left as it is.
        data: Samples to learn from.
        calibration: Gives the batches that ranges are found on, each time anew.
        example: Forward's arguments for a few samples.
        probes: Few, small batches on which each layer's error is measured.
        metric: What quality is measured in; by it, answers are told that are no classes.
        device: Where to train.
        checkpoints: An existing folder that outlives the process, or None.
        scratch: An existing folder for what the teacher answered.
        progress: Is told of the stages `calibrate`, `train` and `convert`.

    Raises:
        NothingToCompress: No layer can become int8.
        LabelMismatch: The loss needs labels, and there are none, or they do not fit.
        CompressError: What `prepare_qat` and `fit` raise.
    """
    if config.amp == "auto":  # bfloat16 has fewer digits than the scales
        config = replace(config, amp="off")
    check_quantized(config, data, example)
    progress.stage("calibrate", "finding the ranges to begin with")
    tutor = copy.deepcopy(lifted.graph_module).eval()
    with torch.no_grad():
        answer = primary_output(copy.deepcopy(tutor)(*example))
    data.check(answer)
    objective = _objective(config, answer, data, metric)
    with tell_refusals("The model does not run on the samples that ranges are found on"):
        model = prepare_qat(
            lifted.graph_module, example, calibration(), config, backend=spec.backend
        )  # fmt: skip
    before = copy.deepcopy(model.module)
    make_trainable(model.module)
    progress.stage("train", f"training on {device.type}")
    if objective.needs_teacher:
        fold_batch_norm(tutor)
        data = teach(
            data, Teacher(tutor), config, device=device, scratch=scratch, progress=progress,
            span=(0.0, _TEACHING_SHARE),
        )  # fmt: skip
    trained = fit(
        model.module, objective, data, config, phase="qat", seed=spec.seed, device=device,
        checkpoints=checkpoints, progress=progress,
        on_step=Schedule(model, config, data.batches_per_epoch(config.batch_size), calibration),
        span=(_TEACHING_SHARE, 1.0),
    )  # fmt: skip
    progress.stage("convert", "converting weights")
    return QatOutcome(model.convert(lifted.report.island_reasons, probes), before, trained)


def check_quantized(config: QatConfig, data: TrainingData, example: Sequence[Any]) -> None:
    """Find what would keep the model from learning, without running it.

    Raises:
        LabelMismatch: The loss needs labels, and there are none.
        InvalidSpec: Inputs that cannot be changed as asked for, or a batch larger than the data.
    """
    if config.loss != "distill" and not data.has_labels:
        raise LabelMismatch(
            f"Loss '{config.loss}' needs labels; add an array 'label' to the training dataset, or "
            "use loss 'distill', which goes by the float model alone."
        )
    check_augmentations(config.augment, example)
    data.check_batch_size(config.batch_size)


def try_quantized(
    spec: EngineSpec, config: QatConfig, lifted: Lifted, example: Sequence[Any]
) -> Quantized:
    """Convert as a preflight does: with what one sample tells.

    Raises:
        CompressError: What `prepare_qat` raises.
    """
    model = prepare_qat(lifted.graph_module, example, [example], config, backend=spec.backend)
    return model.convert(lifted.report.island_reasons)


class Schedule:
    """What moves at which step: ranges, step sizes and BatchNorm at first, weights alone at last.

    While ranges are live they are found anew ten times, at last when they are frozen.
    """

    def __init__(
        self, model: QatModel, config: QatConfig, per_epoch: int, calibration: Batches
    ) -> None:
        """Take the settings.

        Args:
            model: In training.
            config: The job's.
            per_epoch: Steps of an epoch.
            calibration: Gives the batches that ranges are found on, each time anew.
        """
        self._model, self._calibration = model, calibration
        steps = config.steps or (config.epochs or DEFAULT_EPOCHS) * per_epoch

        def until(epochs: float | None, share: float) -> int:
            return round(share * steps if epochs is None else epochs * per_epoch)

        self._ranges_until = until(config.freeze_observers_after, _RANGES_SHARE)
        self._norms_until = until(config.freeze_batch_norm_after, _NORMS_SHARE)

    def __call__(self, step: int, epoch: float) -> None:
        """Set what holds for a step, from 0; see `fit`."""
        if self._is_renewal(step):
            self._model.find_ranges(self._batches())
        self._model.freeze_steps(step >= self._ranges_until)
        if step >= self._norms_until:
            self._model.freeze_batch_norm()

    def _is_renewal(self, step: int) -> bool:
        end = self._ranges_until
        return 0 < step <= end and step * _RENEWALS // end > (step - 1) * _RENEWALS // end

    def _batches(self) -> Iterable[Sequence[Any]]:
        device = next(self._model.module.parameters()).device
        for batch in self._calibration():
            yield [map_tensors(value, lambda tensor: tensor.to(device)) for value in batch]


def _objective(
    config: QatConfig, answer: torch.Tensor, data: TrainingData, metric: Metric | None
) -> AnswerObjective:
    """Compare classes by divergence, and other answers by squared distance."""
    are_targets = data.has_labels and not data.has_classes
    is_distance = metric in _DISTANCES or are_targets or class_axis(answer) is None
    probable = look_like_probabilities(answer)
    return AnswerObjective(
        "mse" if is_distance else "kl_ce",
        temperature=config.temperature,
        alpha=_ALPHAS[config.loss],
        has_labels=data.has_labels,
        student_probabilities=probable,
        teacher_probabilities=probable,
    )
