"""Distillation: the job's model teaches a student, uploaded or cut out of the teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import (
    InvalidSpec,
    LabelMismatch,
    ModelError,
    NothingToTrain,
    StudentMismatch,
)
from compress.lift import Lifted, clean_message, lift
from compress.measure.outputs import class_axis, output_tensors, primary_output
from compress.original import REFUSALS, Original
from compress.progress import Progress
from compress.prune import prune
from compress.quantize.folding import fold_batch_norm
from compress.spec.training import DEFAULT_EPOCHS, DistillConfig
from compress.structure import tensors_in
from compress.train.augment import check_augmentations
from compress.train.data import TrainingData
from compress.train.features import FeatureObjective, Taps
from compress.train.loop import Trained, fit
from compress.train.losses import look_like_probabilities
from compress.train.objective import AnswerObjective, Objective, labels_alone
from compress.train.teacher import Teacher
from compress.train.teaching import teach

_FINETUNE_RATE = 0.1
"""Learning rate of the last stage, in units of the first's."""
_TEACHING_SHARE = 0.05
"""Of the stage."""


@dataclass(frozen=True)
class Student:
    """A model before it has learned.

    Attributes:
        lifted: It, and what lifting says of it.
        report: What pruning did, as plain JSON types; None of an uploaded one.
    """

    lifted: Lifted
    report: dict[str, Any] | None = None


def make_student(
    config: DistillConfig,
    uploaded: Original | None,
    teacher: Lifted,
    example: Sequence[Any],
    batches: Sequence[Sequence[Any]] = (),
    *,
    other_batches: int = 2,
) -> Student:
    """Lift the student, or cut it out of the teacher, and see that it fits.

    Args:
        config: The job's.
        uploaded: The student; None to prune the teacher.
        teacher: The job's model.
        example: Forward's arguments.
        batches: A few samples, by which pruning tells channels that matter.
        other_batches: At how many other batch sizes lifting is verified.

    Raises:
        StudentMismatch: It does not take what the teacher takes, or answers otherwise.
        InvalidSpec: A loss or layers that such models have not.
        CompressError: What lifting or pruning raises.
    """
    if uploaded is None:
        assert config.prune is not None
        pruned = prune(teacher.graph_module, example, config.prune, batches=batches)
        student = Student(
            replace(teacher, graph_module=pruned.graph_module), pruned.report.to_dict()
        )
    else:
        _check_takes(uploaded, example)
        try:
            student = Student(lift(uploaded.module, example, other_batches=other_batches))
        except ModelError as error:
            raise type(error)(f"Of the student: {error.message}", error.details) from error
    _check_answers(config, teacher.graph_module, student.lifted.graph_module, example)
    return student


def distill(
    config: DistillConfig,
    student: Student,
    teacher: Lifted,
    data: TrainingData,
    example: Sequence[Any],
    *,
    seed: int,
    device: torch.device,
    checkpoints: Path | None,
    scratch: Path,
    progress: Progress,
) -> tuple[fx.GraphModule, list[Trained]]:
    """Train a copy of the student, and tell of each phase.

    Args:
        config: How.
        student: Left as it is.
        teacher: Left as it is.
        data: Samples.
        example: Forward's arguments for a few of them.
        seed: Of everything random.
        device: Where to compute.
        checkpoints: An existing folder that outlives the process, or None.
        scratch: An existing folder for what the teacher answered.
        progress: Is told; the stage `train` has begun.

    Raises:
        CompressError: What `fit` raises; also for labels that are missing or do not fit.
    """
    trainee, answer = _ready(config, student, data, example)
    data.check(answer)
    model = copy.deepcopy(teacher.graph_module)
    if not config.feature_layers:
        fold_batch_norm(model)
    tutor = Teacher(model, list(config.feature_layers))
    taps = Taps(trainee, list(config.feature_layers.values()), "student")
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)  # projections begin at random
        objective = _objective(config, trainee, tutor, taps, example, data)
    end = _main_share(config, data)
    if objective.needs_teacher:
        data = teach(
            data, tutor, config, device=device, scratch=scratch, progress=progress,
            span=(0.0, _TEACHING_SHARE),
        )  # fmt: skip
    phases = [
        fit(
            trainee, objective, data, config, phase="distill", seed=seed, device=device,
            checkpoints=checkpoints, progress=progress, span=(_TEACHING_SHARE, end),
        )
    ]  # fmt: skip
    taps.close()
    if config.finetune_epochs:
        progress.note("Fine-tuning on the labels alone.")
        phases.append(
            fit(
                trainee, labels_alone(student_probabilities=look_like_probabilities(answer)),
                data.taught_by(None), _finetuning(config), phase="finetune", seed=seed,
                device=device, checkpoints=checkpoints, progress=progress, span=(end, 1.0),
            )
        )  # fmt: skip
    return trainee, phases


def check_distillation(
    config: DistillConfig, student: Student, data: TrainingData, example: Sequence[Any]
) -> None:
    """Find what would keep the student from learning, without looking at all samples.

    Raises:
        CompressError: What `distill` would raise before its first step.
    """
    _, answer = _ready(config, student, data, example)
    data.check_labels(answer)
    data.check_batch_size(config.batch_size)


def _ready(
    config: DistillConfig, student: Student, data: TrainingData, example: Sequence[Any]
) -> tuple[fx.GraphModule, Tensor]:
    """Return a copy of the student that can learn, and what it answers to the example."""
    trainee = copy.deepcopy(student.lifted.graph_module)
    make_trainable(trainee)
    check_augmentations(config.augment, example)
    if config.finetune_epochs and not data.has_labels:
        raise LabelMismatch(
            "finetune_epochs goes by labels alone, and there are none; add an array 'label' to the "
            "training dataset, or leave finetune_epochs out."
        )
    with torch.no_grad():
        return trainee, primary_output(copy.deepcopy(trainee)(*example))


def make_trainable(model: nn.Module) -> None:
    """Let every float parameter learn that is in no TorchScript; files often come without.

    Raises:
        NothingToTrain: There is none.
    """
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            is_lifted = not isinstance(module, torch.jit.ScriptModule)
            parameter.requires_grad_(is_lifted and parameter.is_floating_point())
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise NothingToTrain(
            "The model has no parameter that training could change: it holds none, or all of them "
            "are in regions that stay TorchScript."
        )


def _objective(
    config: DistillConfig,
    trainee: fx.GraphModule,
    tutor: Teacher,
    taps: Taps,
    example: Sequence[Any],
    data: TrainingData,
) -> Objective:
    answer = primary_output(trainee(*example))
    taught = tutor.answer(example)
    base = AnswerObjective(
        config.loss,
        temperature=config.temperature,
        alpha=config.alpha,
        has_labels=data.has_labels,
        student_probabilities=look_like_probabilities(answer),
        teacher_probabilities=look_like_probabilities(taught.output),
    )
    if not config.feature_layers:
        return base
    return FeatureObjective(
        base,
        config.feature_loss,
        config.feature_layers,
        config.feature_weight,
        taps=taps,
        student=taps.outputs,
        teacher=taught.features,
    )


def _main_share(config: DistillConfig, data: TrainingData) -> float:
    """Return where in the stage the first phase ends."""
    if not config.finetune_epochs:
        return 1.0
    epochs = config.epochs or DEFAULT_EPOCHS
    if config.steps is not None:
        epochs = -(-config.steps // max(1, data.batches_per_epoch(config.batch_size)))
    whole = epochs + config.finetune_epochs
    return _TEACHING_SHARE + (1 - _TEACHING_SHARE) * epochs / whole


def _finetuning(config: DistillConfig) -> DistillConfig:
    return replace(
        config,
        epochs=config.finetune_epochs,
        steps=None,
        learning_rate=config.learning_rate * _FINETUNE_RATE,
        warmup_steps=0,
    )


def _check_takes(student: Original, example: Sequence[Any]) -> None:
    """Run the student on what the teacher takes.

    Raises:
        StudentMismatch: It refuses.
    """
    try:
        student.first_run(example)
    except REFUSALS as error:
        told = ", ".join(str(list(tensor.shape)) for tensor in tensors_in(list(example)))
        raise StudentMismatch(
            f"The student does not take what the teacher takes, inputs of shape {told}; it says: "
            f"{clean_message(error)}"
        ) from error


def _check_answers(
    config: DistillConfig, teacher: fx.GraphModule, student: fx.GraphModule, example: Sequence[Any]
) -> None:
    """Compare what both answer, and look for the layers that are named.

    Raises:
        StudentMismatch: Outputs differ in number or shape.
        InvalidSpec: The loss needs classes, or a layer is not there.
    """
    teacher, student = copy.deepcopy(teacher), copy.deepcopy(student)
    theirs_taps = Taps(teacher, list(config.feature_layers), "teacher")
    ours_taps = Taps(student, list(config.feature_layers.values()), "student")
    with torch.no_grad():
        taught, answer = teacher(*example), student(*example)
    theirs = [list(tensor.shape) for tensor in output_tensors(taught)]
    ours = [list(tensor.shape) for tensor in output_tensors(answer)]
    if theirs != ours:
        raise StudentMismatch(
            f"The teacher answers with shapes {_told(theirs)}, the student with {_told(ours)}, for "
            "the same input; they must be alike, batch first."
        )
    if isinstance(taught, dict) and isinstance(answer, dict) and list(taught) != list(answer):
        raise StudentMismatch(
            f"The teacher answers with a dict of {_told(list(taught))}, the student with one of "
            f"{_told(list(answer))}; outputs are compared one by one, so give both the same names "
            "in the same order."
        )
    if config.loss != "mse" and class_axis(primary_output(taught)) is None:
        raise InvalidSpec(
            f"Loss '{config.loss}' compares classes, and answers of shape {theirs[0]} have none; "
            "use loss 'mse'."
        )
    if config.feature_layers:
        base = AnswerObjective(config.loss, temperature=1.0, alpha=1.0, has_labels=False)
        FeatureObjective(
            base, config.feature_loss, config.feature_layers, 1.0,
            taps=ours_taps, student=ours_taps.outputs, teacher=theirs_taps.outputs,
        )  # fmt: skip


def _told(things: Sequence[Any]) -> str:
    return ", ".join(map(str, things)) or "none at all"
