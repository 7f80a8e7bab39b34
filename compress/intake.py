"""What a job is given: model, samples and labels, opened and checked to fit each other.

Everything that can be wrong with a request's files is found here, in the first seconds, before
any long work begins.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.data import Dataset, open_dataset
from compress.errors import (
    BadSignature,
    CompressError,
    InputsUnknown,
    LabelMismatch,
    ModelFailed,
    ShapeMismatch,
)
from compress.lift import forward_arguments, load_model
from compress.measure.outputs import primary_output
from compress.measure.quality import pick_metric
from compress.result import Inputs
from compress.spec import EngineSpec, Metric

_NAMED_AXIS_LENGTH = 32
"""Length given to a named axis other than the first, when inputs are made up from their shapes."""
_SHAPE_WORDS = re.compile(
    r"shape|size|dimension|\bdim\b|channel|expected|must match|broadcast|elements|scalar type"
    r"|dtype|data type|input type|tensor type|index out of range|multipl",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Intake:
    """Files of a job, open and checked.

    Attributes:
        model: The original, in eval mode.
        dtype: Element type of its floating-point arguments.
        arguments: Names of the arguments that inputs are given for.
        calibration: Samples for scales and examples, or None.
        evaluation: Samples for quality, or None.
        made_up: Random inputs, where there is no dataset; a batch for each size the model took.
        metric: What quality is measured in, or None where nothing can be.
    """

    model: torch.jit.ScriptModule
    dtype: torch.dtype
    arguments: list[str]
    calibration: Dataset | None
    evaluation: Dataset | None
    made_up: list[list[Tensor]]
    metric: Metric | None

    @property
    def parameters(self) -> int:
        """Number of elements of the original's parameters."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @property
    def judged(self) -> Dataset | None:
        """The dataset that quality is measured on: evaluation, else calibration."""
        return self.evaluation or self.calibration

    def probes(self) -> list[list[Tensor]]:
        """Return small inputs in float32, of two batch sizes where the model takes two."""
        dataset = self.calibration or self.evaluation
        if dataset is None:
            return self.made_up
        single = dataset.sample(0, 1)
        several = [torch.cat([tensor] * 3)[:3] for tensor in dataset.sample(0, 3)]
        return [single, several] if accepts(self.model, several, self.dtype) else [single]

    def step(self, dataset: Dataset, spec: EngineSpec) -> int:
        """Return the samples per call: as asked for, or 1 where the model takes single ones."""
        several = dataset.sample(0, min(2, dataset.samples))
        return spec.calibration_batch_size if accepts(self.model, several, self.dtype) else 1

    def calibration_batches(self, spec: EngineSpec) -> Iterator[list[Tensor]]:
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
        ShapeMismatch: Arrays that the model does not take.
        CompressError: Any other fault of the files; see errors.py.
    """
    model = load_model(inputs.model)
    calibration = _open(inputs.calibration, scratch)
    evaluation = _open(inputs.evaluation, scratch)
    if spec.method == "ptq" and calibration is None:
        raise InputsUnknown(
            "Static quantization finds its scales from samples; give a calibration dataset "
            "(.npz or .safetensors) with some hundred inputs."
        )
    if calibration is None and evaluation is None and not inputs.model_inputs:
        raise InputsUnknown(
            "Nothing tells what the model is fed with; give a calibration or evaluation dataset, "
            "or the shapes of its inputs."
        )
    dtype = float_dtype(model)
    arguments: list[str] = []
    for role, dataset in (("evaluation", evaluation), ("calibration", calibration)):
        if dataset is not None:
            arguments = check_arguments(model, dataset.names)
            check_takes(model, dataset, dtype, role)
    made_up: list[list[Tensor]] = []
    if not arguments:
        made_up = _make_up(model, inputs.model_inputs, dtype, spec.seed)
        arguments = check_arguments(model, [one.name for one in inputs.model_inputs])
    if calibration is not None:
        calibration.check_calibration(spec.calibration_samples)
    if evaluation is not None:
        evaluation.check_evaluation()
    metric = _metric(spec, model, dtype, evaluation, calibration)
    return Intake(model, dtype, arguments, calibration, evaluation, made_up, metric)


def run_original(
    model: torch.jit.ScriptModule, inputs: Sequence[Tensor], dtype: torch.dtype
) -> Any:
    """Run the model on inputs in float32, cast to what it takes."""
    with torch.no_grad():
        return model(*cast_inputs(inputs, dtype))


def cast_inputs(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    """Return the inputs with their floating-point tensors in `dtype`."""
    return [value.to(dtype) if value.is_floating_point() else value for value in inputs]


def accepts(model: torch.jit.ScriptModule, inputs: Sequence[Tensor], dtype: torch.dtype) -> bool:
    """Whether the model runs on these inputs at all."""
    try:
        run_original(model, inputs, dtype)
    except (RuntimeError, torch.jit.Error, IndexError):
        return False
    return True


def float_dtype(model: torch.jit.ScriptModule) -> torch.dtype:
    """Return the element type of the model's weights if all share one, else float32."""
    dtypes = {p.dtype for p in model.parameters() if p.is_floating_point()}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def check_arguments(model: torch.jit.ScriptModule, names: Sequence[str]) -> list[str]:
    """Return the names of the arguments that `names` feed, in order.

    Raises:
        ShapeMismatch: Too few or too many arrays.
        BadSignature: An argument to be fed is no tensor.
    """
    arguments = forward_arguments(model)
    needed = [argument for argument in arguments if not argument.has_default]
    if not len(needed) <= len(names) <= len(arguments):
        told = ", ".join(argument.name for argument in arguments) or "none"
        count = str(len(needed)) if len(needed) == len(arguments) else (
            f"{len(needed)} to {len(arguments)}"
        )  # fmt: skip
        raise ShapeMismatch(
            f"forward takes {count} inputs ({told}), but the data holds {len(names)} "
            f"({', '.join(names)})."
        )
    for argument in arguments[: len(names)]:
        if argument.type not in ("Tensor", "Optional[Tensor]"):
            raise BadSignature(
                f"Argument '{argument.name}' of forward is of type {argument.type}; only tensors "
                "can be given."
            )
    return [argument.name for argument in arguments[: len(names)]]


def check_takes(
    model: torch.jit.ScriptModule, dataset: Dataset, dtype: torch.dtype, role: str
) -> None:
    """Run the model on one sample.

    Raises:
        ShapeMismatch: The model refuses the sample's shape or element type.
        ModelFailed: The model raises for another reason.
    """
    sample = dataset.sample(0, 1)
    try:
        run_original(model, sample, dtype)
    except (RuntimeError, torch.jit.Error, IndexError) as error:
        told = ", ".join(
            f"'{name}' {['batch', *array.shape[1:]]} {array.dtype}"
            for name, array in zip(dataset.names, dataset.inputs, strict=True)
        )
        raise refusal(error, f"the {role} data ({told})".replace("'batch'", "batch")) from error


def refusal(error: Exception, what: str) -> CompressError:
    """Return the error to raise where the model raised `error` on `what`."""
    text = clean_message(error)
    if _SHAPE_WORDS.search(text):
        return ShapeMismatch(f"The model does not take {what}; it says: {text}")
    return ModelFailed(f"The model itself failed on {what}; it says: {text}")


def clean_message(error: Exception) -> str:
    """Return the heart of an error raised in TorchScript: no trace, no code, no path."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    raised = [
        match
        for line in lines
        if (match := re.match(r"(?:[\w.]*(?:Error|Exception)): (.+)", line)) is not None
    ]
    text = raised[-1].group(1) if raised else (lines[0] if lines else type(error).__name__)
    text = re.sub(r"(?:/[\w.+-]+){2,}", "…", text)
    return text if len(text) <= 300 else text[:299] + "…"


def _open(path: Path | None, scratch: Path) -> Dataset | None:
    return None if path is None else open_dataset(path, scratch)


def _make_up(
    model: torch.jit.ScriptModule, specs: Sequence[Any], dtype: torch.dtype, seed: int
) -> list[list[Tensor]]:
    """Return random inputs of the declared shapes, of each batch size that the model takes."""
    generator = torch.Generator().manual_seed(seed)
    batches: list[list[Tensor]] = []
    for samples in (1, 3):
        batch = [_random(spec, samples, generator) for spec in specs]
        if not batches:
            try:
                run_original(model, batch, dtype)
            except (RuntimeError, torch.jit.Error, IndexError) as error:
                told = ", ".join(f"'{spec.name}' {list(spec.shape)} {spec.dtype}" for spec in specs)
                raise refusal(error, f"inputs of the declared shapes ({told})") from error
            batches.append(batch)
        elif [t.shape for t in batch] != [t.shape for t in batches[0]] and accepts(
            model, batch, dtype
        ):
            batches.append(batch)
    return batches


def _random(spec: Any, samples: int, generator: torch.Generator) -> Tensor:
    shape = [
        length if isinstance(length, int) else samples if axis == 0 else _NAMED_AXIS_LENGTH
        for axis, length in enumerate(spec.shape)
    ]
    dtype = getattr(torch, spec.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator)
    return torch.randint(0, 2, shape, generator=generator).to(dtype)


def _metric(
    spec: EngineSpec,
    model: torch.jit.ScriptModule,
    dtype: torch.dtype,
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
    output = run_original(model, sample, dtype)
    metric = pick_metric(asked, label, output)
    if metric in ("top1", "top5") and dataset.label is not None:
        classes = primary_output(output).shape[1]
        low, high = int(dataset.label.min()), int(dataset.label.max())
        if low < 0 or high >= classes:
            raise LabelMismatch(
                f"Labels run from {low} to {high}, but the model has classes 0 to {classes - 1}."
            )
    return metric
