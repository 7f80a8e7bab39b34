"""The methods that train, as parts of a job: what learns, from what, and how much it gained."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.caveats import caveats
from compress.intake import Intake
from compress.judging import Reference, judge
from compress.lift import Lifted, load_model
from compress.measure.outputs import primary_output
from compress.progress import Progress
from compress.quantize import Quantized, to_float32
from compress.result import Inputs, Quality
from compress.spec import DistillConfig, EngineSpec, QatConfig
from compress.structure import batch_length, cast_floats
from compress.train.data import TrainingData
from compress.train.distill import Student, check_distillation, distill, make_student
from compress.train.loop import Trained
from compress.train.machine import pick_device
from compress.train.qat import check_quantized, train_quantized, try_quantized

_PRUNING_SAMPLES, _PRUNING_BATCH = 64, 16
"""By which channels are told that matter, and how many at a time: gradients take memory."""


@dataclass(frozen=True)
class Learned:
    """A model that has learned.

    Attributes:
        quantized: Its graph and the table of its layers.
        lifted: What it was made from.
        story: `result.training`.
        reference: The original's answers, as far as they are known by now.
    """

    quantized: Quantized
    lifted: Lifted
    story: dict[str, Any]
    reference: Reference


def run_distillation(
    spec: EngineSpec,
    config: DistillConfig,
    intake: Intake,
    lifted: Lifted,
    inputs: Inputs,
    scratch: Path,
    progress: Progress,
) -> Learned:
    """Make the student, train it, and compare it with what it was and with its teacher.

    Args:
        spec: The job.
        config: Its settings.
        intake: Its data.
        lifted: The teacher; left as it is.
        inputs: The job's files.
        scratch: An existing folder for files of this job alone.
        progress: Is told of the stages `train` and `convert`.

    Raises:
        CompressError: What went wrong and what the user can do.
    """
    assert intake.training is not None  # open_intake has refused a job without
    example = intake.probes()[-1]
    few = min(_PRUNING_SAMPLES, intake.training.samples)
    pieces = [
        intake.training.sample(start, min(start + _PRUNING_BATCH, few))
        for start in range(0, few, _PRUNING_BATCH)
    ]
    student = make_student(config, intake.student, lifted, example, pieces)
    if intake.student is not None:
        for sentence in caveats(student.lifted.report):
            progress.warn(f"Of the student: {sentence}")
    graphs = [lifted.graph_module, student.lifted.graph_module]
    device = pick_device(spec.device, graphs, example, progress)
    progress.stage("train", f"training on {device.type}")
    data = TrainingData.split(intake.training, config.validation_fraction, spec.seed)
    graph, phases = distill(
        config, student, lifted, data, example,
        seed=spec.seed, device=device, checkpoints=inputs.checkpoints, scratch=scratch,
        progress=progress,
    )  # fmt: skip
    progress.stage("convert", "comparing the student with its teacher")
    story, reference = _compare(spec, intake, inputs, phases, student.lifted.graph_module, graph)
    story["parameters"] = {"teacher": _count(lifted.graph_module), "student": _count(graph)}
    story["pruned"] = student.report
    islands = student.lifted.report.island_reasons
    return Learned(to_float32(graph, islands), student.lifted, story, reference)


def run_quantized(
    spec: EngineSpec,
    config: QatConfig,
    intake: Intake,
    lifted: Lifted,
    inputs: Inputs,
    scratch: Path,
    progress: Progress,
    probes: Sequence[Sequence[Any]],
) -> Learned:
    """Train the model with its rounding, and compare it with what it was and with the float one.

    Args:
        spec: The job.
        config: Its settings.
        intake: Its data.
        lifted: The float model; left as it is.
        inputs: The job's files.
        scratch: An existing folder for files of this job alone.
        progress: Is told of the stages `calibrate`, `train` and `convert`.
        probes: Few, small batches on which each layer's error is measured.

    Raises:
        CompressError: What went wrong and what the user can do.
    """
    assert intake.training is not None  # open_intake has refused a job without
    example = intake.probes()[-1]
    outcome = train_quantized(
        spec, config, lifted,
        TrainingData.split(intake.training, config.validation_fraction, spec.seed),
        lambda: intake.calibration_batches(spec), example, probes, metric=intake.metric,
        device=pick_device(spec.device, [lifted.graph_module], example, progress),
        checkpoints=inputs.checkpoints, scratch=scratch, progress=progress,
    )  # fmt: skip
    story, reference = _compare(
        spec, intake, inputs, [outcome.trained], outcome.before, outcome.quantized.graph_module
    )
    return Learned(outcome.quantized, lifted, story, reference)


def try_student(
    spec: EngineSpec,
    config: DistillConfig,
    intake: Intake,
    lifted: Lifted,
    example: Sequence[Any],
) -> Student:
    """Make the student as a preflight does: on one sample.

    Raises:
        CompressError: What `run_distillation` would raise before it trains.
    """
    assert intake.training is not None  # open_intake has refused a job without
    student = make_student(config, intake.student, lifted, example, other_batches=1)
    data = TrainingData.split(intake.training, config.validation_fraction, spec.seed)
    check_distillation(config, student, data, intake.training.sample(0, batch_length(example)))
    return student


def try_quantization(
    spec: EngineSpec,
    config: QatConfig,
    intake: Intake,
    lifted: Lifted,
    example: Sequence[Any],
) -> Quantized:
    """Convert as a preflight does: with what one sample tells.

    Raises:
        CompressError: What `run_quantized` would raise before it trains.
    """
    assert intake.training is not None  # open_intake has refused a job without
    data = TrainingData.split(intake.training, config.validation_fraction, spec.seed)
    check_quantized(config, data, example)
    if data.has_labels:
        data.check_labels(primary_output(intake.original.run(example)))
    return try_quantized(spec, config, lifted, example)


def _compare(
    spec: EngineSpec,
    intake: Intake,
    inputs: Inputs,
    phases: Sequence[Trained],
    before: fx.GraphModule,
    after: fx.GraphModule,
) -> tuple[dict[str, Any], Reference]:
    """Return `result.training`, and the original's answers, which the files are compared with."""
    reference = Reference(intake, spec, lambda: load_model(inputs.model), keep=True)
    judged = judge(
        reference, {"student before": _in_float32(before), "student after": _in_float32(after)}
    )
    story = tell_training(
        phases,
        before=judged.of("student before").quality,
        teacher=judged.baseline,
        after=judged.of("student after").quality,
    )
    return story, reference


def tell_training(
    phases: Sequence[Trained],
    *,
    before: Quality | None,
    teacher: Quality | None,
    after: Quality | None,
) -> dict[str, Any]:
    """Return `result.training` as plain JSON types.

    Args:
        phases: One after the other.
        before: The trained model's quality before training.
        teacher: The teacher's; of quantization-aware training the float model's.
        after: The trained model's.
    """
    seconds = sum(phase.seconds for phase in phases)
    samples = sum(phase.images_per_s * phase.seconds for phase in phases)
    resumed = [phase.resumed_from for phase in phases if phase.resumed_from is not None]
    return {
        "epochs": sum(phase.epochs for phase in phases),
        "steps": sum(phase.steps for phase in phases),
        "final": phases[-1].final,
        "curve": [row for phase in phases for row in phase.curve],
        "student_before": None if before is None else asdict(before),
        "teacher": None if teacher is None else asdict(teacher),
        "student_after": None if after is None else asdict(after),
        "resumed_from_step": sum(resumed) if resumed else None,
        "seconds": seconds,
        "images_per_s": samples / max(seconds, 1e-9),
    }


def _in_float32(model: fx.GraphModule) -> Callable[..., Any]:
    """Return a copy of a lifted graph as what takes the original's own element types."""
    model = copy.deepcopy(model)  # it may keep state

    def run(*inputs: Any) -> Any:
        with torch.no_grad():
            return model(*cast_floats(inputs, torch.float32))

    return run


def _count(model: fx.GraphModule) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
