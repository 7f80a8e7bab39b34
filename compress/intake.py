"""What a job is given: model, samples and labels, opened and checked to fit each other.

Everything that can be wrong with a request's files is found here, in the first seconds, before
any long work begins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.data import Dataset, as_error, open_dataset
from compress.errors import InputsUnknown, ModelError, ShapeMismatch
from compress.measure.outputs import primary_output
from compress.measure.quality import IGNORED, check_range, pick_metric
from compress.original import REFUSALS, Original, load_original, refusal
from compress.result import Inputs
from compress.spec import (
    EngineSpec,
    Metric,
    Number,
    TensorSpec,
    TrainingConfig,
    needs_calibration,
)
from compress.spec.arguments import Slot, check_signature
from compress.spec.declared import bind_declared
from compress.spec.names import Misfit, read_name
from compress.structure import map_tensors, tensors_in

_LAYER_PROBES = 4
_NAMED_AXIS_LENGTH = 32
"""Length given to a named axis other than the first, when inputs are made up from their shapes."""


@dataclass(frozen=True)
class Intake:
    """Files of a job, open and checked.

    A batch is a list of forward's arguments: tensors, numbers, None, or lists, tuples, named tuples
    and dicts of them.

    Attributes:
        original: The model.
        calibration: Samples for scales and examples, or None; those to learn from, where none
            other were given.
        evaluation: Samples for quality, or None.
        made_up: Random inputs, where there is no dataset; a batch for each size the model took.
        metric: What quality is measured in, or None where nothing can be.
        training: Samples to learn from, or None.
        student: The model that a distillation trains, or None.
    """

    original: Original
    calibration: Dataset | None
    evaluation: Dataset | None
    made_up: list[list[Any]]
    metric: Metric | None
    training: Dataset | None = None
    student: Original | None = None

    @property
    def model(self) -> torch.jit.ScriptModule:
        """The original, in eval mode, as it was loaded."""
        return self.original.module

    @property
    def dtype(self) -> torch.dtype:
        """Element type of the original's floating-point arguments."""
        return self.original.dtype

    @property
    def parameters(self) -> int:
        """Number of elements of the original's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def judged(self) -> Dataset | None:
        """The dataset that quality is measured on: evaluation, else calibration."""
        return self.evaluation or self.calibration

    def probes(self) -> list[list[Any]]:
        """Return small batches in float32, of two sizes where the model takes two."""
        dataset = self.calibration or self.evaluation
        if dataset is None:
            return self.made_up
        single = dataset.sample(0, 1)
        several = [
            map_tensors(value, lambda tensor: torch.cat([tensor] * 3)[:3])
            for value in dataset.sample(0, 3)
        ]
        return [single, several] if self.original.accepts(several) else [single]

    def layer_probes(self) -> list[list[Any]]:
        """Return single samples on which the error of each layer is measured."""
        dataset = self.calibration or self.evaluation
        if dataset is None:
            return [self.first_sample()]
        return [dataset.sample(i, i + 1) for i in range(min(_LAYER_PROBES, dataset.samples))]

    def first_sample(self) -> list[Any]:
        """Return a batch of one sample."""
        dataset = self.calibration or self.evaluation
        return self.made_up[0] if dataset is None else dataset.sample(0, 1)

    def step(self, dataset: Dataset, spec: EngineSpec) -> int:
        """Return the samples per call: as asked for, or 1 where the model takes single ones."""
        several = dataset.sample(0, min(2, dataset.samples))
        return spec.calibration_batch_size if self.original.accepts(several) else 1

    def calibration_batches(self, spec: EngineSpec) -> Iterator[list[Any]]:
        """Yield calibration batches of the size and number that the spec asks for."""
        assert self.calibration is not None  # open_intake has refused a job without
        step = self.step(self.calibration, spec)
        for inputs, _ in self.calibration.batches(step, spec.calibration_samples):
            yield inputs


def open_intake(spec: EngineSpec, inputs: Inputs, scratch: Path) -> Intake:
    """Open a job's files and check that they fit.

    Args:
        spec: The job.
        inputs: Its files.
        scratch: An existing folder for what must be unpacked.

    Raises:
        InputsUnknown: Nothing tells what the model is fed with.
        BadSignature: An argument that nothing can be given for.
        ShapeMismatch: Arrays that the model does not take.
        CompressError: Any other fault of the files; see errors.py.
    """
    original = load_original(inputs.model)
    try:
        check_signature(original.arguments)
    except Misfit as misfit:
        raise as_error(misfit) from misfit
    training = _open(inputs.training, original, scratch)
    calibration = _open(inputs.calibration, original, scratch) or training
    evaluation = _open(inputs.evaluation, original, scratch)
    if training is None and isinstance(spec.config, TrainingConfig):
        raise InputsUnknown(
            f"Method '{spec.method}' learns from samples; give a training dataset (.npz or "
            ".safetensors) with some thousand inputs, and labels if you have them."
        )
    if calibration is None and needs_calibration(spec.config):
        raise InputsUnknown(
            f"Method '{spec.method}', so configured, finds its scales from samples; give a "
            "calibration dataset (.npz or .safetensors) with some hundred inputs."
        )
    if calibration is None and evaluation is None and not inputs.model_inputs:
        raise InputsUnknown(
            "Nothing tells what the model is fed with; give a calibration or evaluation dataset, "
            "or the shapes of its inputs."
        )
    _check_alike("calibration", calibration, "evaluation", evaluation)
    _check_alike("training", training, "calibration", calibration)
    made_up: list[list[Any]] = []
    if calibration is None and evaluation is None:
        made_up = _make_up(original, inputs.model_inputs, spec.seed)
    roles = {"evaluation": evaluation, "calibration": calibration, "training": training}
    for role, dataset in roles.items():
        if dataset is not None and (role == "training" or dataset is not training):
            _check_takes(original, dataset, role)
    if calibration is not None and calibration is not training:
        calibration.check_calibration(spec.calibration_samples)
    if evaluation is not None:
        evaluation.check_evaluation()
    metric = _metric(spec, original, evaluation, calibration)
    student = None if inputs.student is None else _open_student(inputs.student)
    return Intake(original, calibration, evaluation, made_up, metric, training, student)


def _open_student(path: Path) -> Original:
    try:
        return load_original(path)
    except ModelError as error:
        raise type(error)(f"Of the student: {error.message}") from error


def _open(path: Path | None, original: Original, scratch: Path) -> Dataset | None:
    return None if path is None else open_dataset(path, scratch).bind(original.arguments)


def _check_alike(role: str, one: Dataset | None, other_role: str, other: Dataset | None) -> None:
    """A compressed model is made for the arguments that one dataset gives, and for its numbers."""
    if one is None or other is None or one is other:
        return
    ours, theirs = one.numbers_by_place(), other.numbers_by_place()
    unmatched = ours.keys() ^ theirs.keys()
    if unmatched:
        names = {*one.names, *other.names}
        told = ", ".join(sorted(name for name in names if read_name(name) in unmatched))
        raise ShapeMismatch(
            f"{role.capitalize()} and {other_role} data must give the same arguments of forward; "
            f"only one of them has {told}."
        )
    for place, number in ours.items():
        if theirs[place] != number:
            raise ShapeMismatch(
                f"A number that forward takes is {number} in the {role} data and {theirs[place]} "
                f"in the {other_role} data; a compressed model is made for one value, so give both "
                "the same."
            )


def _check_takes(original: Original, dataset: Dataset, role: str) -> None:
    """Run the model on one sample.

    Raises:
        ShapeMismatch: The model refuses the sample's shape or element type.
        ModelFailed: The model raises for another reason.
    """
    sample = dataset.sample(0, 1)
    try:
        original.first_run(sample)
    except REFUSALS as error:
        told = ", ".join(
            f"'{name}' {['batch', *array.shape[1:]]} {array.dtype}"
            for name, array in zip(dataset.names, dataset.inputs, strict=True)
        )
        raise refusal(error, f"the {role} data ({told})".replace("'batch'", "batch")) from error


def _make_up(original: Original, specs: Sequence[TensorSpec], seed: int) -> list[list[Any]]:
    """Return random inputs of the declared shapes, of each batch size that the model takes."""
    try:
        layout = bind_declared(original.arguments, specs)
    except Misfit as misfit:
        raise as_error(misfit) from misfit
    generator = torch.Generator().manual_seed(seed)
    declared = {spec.name: spec for spec in specs}

    def value_of(slot: Slot, samples: int) -> Tensor | Number | None:
        spec = declared[slot.name]
        return _random(spec, samples, generator) if slot.type == "Tensor" else spec.value

    batches: list[list[Any]] = []
    for samples in (1, 3):
        batch = layout.fill(partial(value_of, samples=samples))
        if not batches:
            try:
                original.first_run(batch)
            except REFUSALS as error:
                told = ", ".join(f"'{spec.name}' {list(spec.shape)} {spec.dtype}" for spec in specs)
                raise refusal(error, f"inputs of the declared shapes ({told})") from error
            batches.append(batch)
        elif _shapes(batch) != _shapes(batches[0]) and original.accepts(batch):
            batches.append(batch)
    return batches


def _shapes(batch: list[Any]) -> list[torch.Size]:
    return [tensor.shape for tensor in tensors_in(batch)]


def _random(spec: TensorSpec, samples: int, generator: torch.Generator) -> Tensor:
    shape = [
        length if isinstance(length, int) else samples if axis == 0 else _NAMED_AXIS_LENGTH
        for axis, length in enumerate(spec.shape)
    ]
    dtype: torch.dtype = getattr(torch, spec.dtype)
    if spec.value is not None:
        return torch.full(shape, spec.value, dtype=dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _metric(
    spec: EngineSpec,
    original: Original,
    evaluation: Dataset | None,
    calibration: Dataset | None,
) -> Metric | None:
    """Pick the metric and check the labels, all of them, against the model's classes."""
    dataset = evaluation or calibration
    if dataset is None:
        if spec.metric is not None:
            raise InputsUnknown(f"Metric '{spec.metric}' needs an evaluation dataset.")
        return None
    sample, label = next(dataset.batches(1))
    asked = spec.metric
    if asked is None and evaluation is None:
        label = None  # calibration data is judged by agreement, however it is labelled
    output = original.run(sample)
    metric = pick_metric(asked, label, output)
    if metric in ("top1", "top5", "f1") and label is not None and dataset.label is not None:
        ids, counted = dataset.label, dataset.label != IGNORED
        low, high = (int(end(initial=0, where=counted)) for end in (ids.min, ids.max))
        check_range(metric, low, high, label, primary_output(output))
    return metric
