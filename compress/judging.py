"""Original and finished files on the same samples: quality, and how close the answers are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from compress.errors import ExportFailed
from compress.intake import Intake
from compress.lift import clean_message
from compress.measure.fidelity import FidelityMeter
from compress.measure.quality import QualityMeter
from compress.original import refusal
from compress.out_of_memory import lacks_memory
from compress.result import Fidelity, Quality
from compress.spec import EngineSpec
from compress.structure import batch_length, cast_floats, map_tensors, tensors_in

Runnable = Callable[..., Any]
"""A loaded file: takes forward's arguments, gives outputs in the original's structure."""
_KEPT_BYTES = 1 << 28
"""Of answers that are kept: 256 MiB, a thousand classes for 67,000 samples."""


@dataclass(frozen=True)
class Judged:
    """One finished file: its quality, where there is a metric, and its fidelity."""

    quality: Quality | None
    fidelity: Fidelity


@dataclass(frozen=True)
class Judgement:
    """All files on the same samples.

    Attributes:
        baseline: The original's quality, where there is a metric.
        artifacts: Finished files by name.
        failed: Files that do not run on a sample which the original takes, and what they say.
    """

    baseline: Quality | None
    artifacts: Mapping[str, Judged]
    failed: Mapping[str, ExportFailed] = field(default_factory=dict)

    def of(self, name: str) -> Judged:
        """Return one file's figures.

        Raises:
            ExportFailed: It does not run on a sample.
        """
        if name in self.failed:
            raise self.failed[name]
        return self.artifacts[name]


@dataclass(frozen=True)
class Answered:
    """One batch that the original was run on.

    Attributes:
        inputs: Forward's arguments, as the original takes them.
        label: Of each sample, where there are labels.
        answer: The original's.
    """

    inputs: Sequence[Any]
    label: Tensor | None
    answer: Any


class Reference:
    """The original's answers on the judged samples, for any number of comparisons."""

    def __init__(
        self,
        intake: Intake,
        spec: EngineSpec,
        open_original: Callable[[], Runnable],
        *,
        keep: bool = False,
    ) -> None:
        """Nothing is run yet.

        Args:
            intake: The job's data: evaluation, else calibration, else made-up inputs.
            spec: The job; calibration data is judged as far as it was used.
            open_original: Gives the original as nobody has run it; it may keep state.
            keep: Whether the original is run but once, unless its answers take too much memory.
        """
        self.metric = intake.metric
        self.samples = _judged_samples(intake, spec)
        self.baseline: Quality | None = None
        self._intake = intake
        self._spec = spec
        self._open = open_original
        self._keep = keep
        self._kept: list[Any] | None = None

    def batches(self) -> Iterator[Answered]:
        """Yield all batches, in order. After the last, `baseline` is known, if there is a metric.

        Raises:
            ModelFailed: The original raises on a sample.
        """
        if self._kept is not None:
            for (inputs, label), answer in zip(self._judged(), self._kept, strict=True):
                yield Answered(inputs, label, answer)
            return
        original, meter = self._open(), None if self.metric is None else QualityMeter(self.metric)
        kept: list[Any] | None = [] if self._keep else None
        room, done = _KEPT_BYTES, 0
        for inputs, label in self._judged():
            try:
                answer = original(*inputs)
            except (RuntimeError, torch.jit.Error) as error:
                samples = f"samples {done} to {done + batch_length(inputs) - 1}"
                raise refusal(error, samples) from error
            if meter is not None:
                meter.add(answer, label, answer)
            room -= sum(tensor.nbytes for tensor in tensors_in(answer))
            if room < 0:
                kept = None
            if kept is not None:
                kept.append(
                    map_tensors(answer, Tensor.clone)
                )  # a buffer of the original, it may be
            yield Answered(inputs, label, answer)
            done += batch_length(inputs)
        self.baseline = None if meter is None else meter.report()
        self._kept, self._keep = kept, kept is not None

    def _judged(self) -> Iterator[tuple[Sequence[Any], Tensor | None]]:
        for inputs, label in _judged_batches(self._intake, self._spec):
            yield cast_floats(inputs, self._intake.dtype), label


def judge(
    reference: Reference,
    artifacts: Mapping[str, Runnable],
    on_samples: Callable[[int, int], None] = lambda done, total: None,
) -> Judgement:
    """Run all models over the samples once, and compare them with the original.

    Args:
        reference: The original's answers.
        artifacts: Name to finished file.
        on_samples: Receives samples done and samples in all.

    Raises:
        ModelFailed: The original itself raises on a sample.
        ExportFailed: Every artifact does: what the first of them says.
    """
    metric = reference.metric
    fidelity = {name: FidelityMeter() for name in artifacts}
    quality = {} if metric is None else {name: QualityMeter(metric) for name in artifacts}
    running, failed = dict(artifacts), dict[str, ExportFailed]()
    done = 0
    with torch.no_grad():
        for batch in reference.batches():
            length = batch_length(batch.inputs)
            for name, artifact in tuple(running.items()):
                try:
                    output = _answer(
                        artifact, batch.inputs, name, f"samples {done} to {done + length - 1}"
                    )
                except ExportFailed as error:
                    failed[name] = error
                    del running[name]
                    if not running:
                        raise next(iter(failed.values())) from error
                    continue
                fidelity[name].add(batch.answer, output)
                if name in quality:
                    quality[name].add(output, batch.label, batch.answer)
            done += length
            on_samples(done, reference.samples)
    before = reference.baseline
    judged = {
        name: Judged(
            quality[name].report(before) if name in quality else None, fidelity[name].report()
        )
        for name in running
    }
    return Judgement(before, judged, failed)


def _answer(artifact: Runnable, inputs: Sequence[Any], name: str, samples: str) -> Any:
    try:
        return artifact(*inputs)
    except Exception as error:  # each runtime raises classes of its own
        if lacks_memory(error):  # of that the job has an error of its own
            raise
        raise ExportFailed(
            f"The file '{name}' does not run on {samples}, which the original takes; it says: "
            f"{clean_message(error)}"
        ) from error


def _judged_samples(intake: Intake, spec: EngineSpec) -> int:
    if intake.evaluation is not None:
        return intake.evaluation.samples
    if intake.calibration is not None:
        return min(intake.calibration.samples, spec.calibration_samples)
    return sum(batch_length(batch) for batch in intake.made_up)


def _judged_batches(
    intake: Intake, spec: EngineSpec
) -> Iterator[tuple[Sequence[Any], Tensor | None]]:
    if intake.judged is None:
        for batch in intake.made_up:
            yield batch, None
        return
    limit = None if intake.evaluation is not None else spec.calibration_samples
    yield from intake.judged.batches(intake.step(intake.judged, spec), limit)
