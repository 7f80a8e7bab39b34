"""Runs finished files against the original, both loaded afresh: quality, fidelity, latency."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.intake import Intake
from compress.lift import load_model
from compress.measure.fidelity import FidelityMeter, noise_fraction
from compress.measure.latency import Comparison, compare_latency
from compress.measure.quality import QualityMeter, within_budget
from compress.measure.size import sha256, size_bytes
from compress.original import refusal
from compress.result import ArtifactReport, Baseline, Fidelity, Quality, Verdict
from compress.spec import EngineSpec
from compress.structure import batch_length, cast_floats

_LATENCY_BUDGET_S = 6.0


@dataclass(frozen=True)
class Judged:
    """Quality of original and artifact on the same samples, and how close their outputs are."""

    baseline: Quality | None
    artifact: Quality | None
    fidelity: Fidelity


def judge(
    intake: Intake,
    spec: EngineSpec,
    original: Path,
    artifact: Path,
    on_samples: Callable[[int, int], None],
) -> Judged:
    """Run both files over the evaluation data, or over calibration or made-up inputs.

    Args:
        intake: The job's data.
        spec: The job; calibration data is judged as far as it was used.
        original: The uploaded file.
        artifact: The finished file.
        on_samples: Receives samples done and samples in all.

    Raises:
        ModelFailed: The original itself raises on a sample.
    """
    first, second = load_model(original), load_model(artifact)
    fidelity = FidelityMeter()
    meters = None
    if intake.metric is not None:
        meters = (QualityMeter(intake.metric), QualityMeter(intake.metric))
    done, total = 0, _judged_samples(intake, spec)
    with torch.no_grad():
        for inputs, label in _judged_batches(intake, spec):
            cast = cast_floats(inputs, intake.dtype)
            try:
                reference = first(*cast)
            except (RuntimeError, torch.jit.Error) as error:
                last = done + batch_length(inputs) - 1
                raise refusal(error, f"samples {done} to {last}") from error
            output = second(*cast)
            fidelity.add(reference, output)
            if meters is not None:
                meters[0].add(reference, label, reference)
                meters[1].add(output, label, reference)
            done += batch_length(inputs)
            on_samples(done, total)
    if meters is None:
        return Judged(None, None, fidelity.report())
    before = meters[0].report()
    return Judged(before, meters[1].report(before), fidelity.report())


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


def race(
    intake: Intake, original: Path, artifact: Path, on_round: Callable[[float], None]
) -> Comparison:
    """Time both files on one sample, in turn, on the threads that torch is set to."""
    first, second = load_model(original), load_model(artifact)
    sample = cast_floats(intake.probes()[0], intake.dtype)
    with torch.no_grad():
        return compare_latency(
            lambda: first(*sample),
            lambda: second(*sample),
            budget_s=_LATENCY_BUDGET_S,
            on_round=on_round,
        )


def report_artifact(
    artifact: Path, precision: str, baseline_bytes: int, judged: Judged, raced: Comparison
) -> ArtifactReport:
    """Gather one file's figures. Faster is only what the whole interval says is faster."""
    verdict: Verdict = "faster" if raced.speedup.ci95[0] > 1 else "not_faster"
    size = size_bytes(artifact)
    return ArtifactReport(
        name=artifact.name,
        format="torchscript",
        precision=precision,
        size_bytes=size,
        sha256=sha256(artifact),
        compression_ratio=baseline_bytes / size,
        verdict=verdict,
        speedup=raced.speedup,
        latency_ms=raced.candidate,
        throughput_per_s=1e3 / raced.candidate.mean,
        quality=judged.artifact,
        fidelity=judged.fidelity,
    )


def report_baseline(original: Path, parameters: int, judged: Judged, raced: Comparison) -> Baseline:
    """Gather the original's figures, from the same runs as the artifact's."""
    baseline = Baseline(size_bytes=size_bytes(original), parameters=parameters)
    return replace(
        baseline,
        latency_ms=raced.baseline,
        throughput_per_s=1e3 / raced.baseline.mean,
        quality=judged.baseline,
    )


def recommend(
    artifacts: Sequence[ArtifactReport], baseline: Baseline, max_accuracy_drop: float
) -> str | None:
    """Return the name of the fastest artifact worth having, or None where the original is better.

    Worth having is one that keeps the accuracy budget, is faster or smaller than the original, and
    is not shown to be slower. Without a quality metric the budget bounds the noise power in the
    outputs as a fraction of their signal power (0.01 is 20 dB).
    """

    def worth(artifact: ArtifactReport) -> bool:
        if artifact.quality is not None and baseline.quality is not None:
            kept = within_budget(artifact.quality, baseline.quality, max_accuracy_drop)
        elif artifact.fidelity is not None:
            kept = noise_fraction(artifact.fidelity) <= max_accuracy_drop
        else:
            kept = False
        gains = artifact.verdict == "faster" or artifact.compression_ratio > 1
        slower = artifact.speedup is not None and artifact.speedup.ci95[1] < 1
        return kept and gains and not slower

    worthy = [artifact for artifact in artifacts if worth(artifact)]
    if not worthy:
        return None
    return max(worthy, key=lambda a: a.speedup.value if a.speedup else 0.0).name
