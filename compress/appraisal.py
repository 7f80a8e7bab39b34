"""Measures the original and finished files, all loaded afresh, and recommends one of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from compress.benchmark import (
    Contender,
    measure_gpu_memory,
    measure_memory,
    run_batches,
    run_race,
    sample_bytes,
)
from compress.devices import device_of, from_processor
from compress.intake import Intake
from compress.judging import Judged, Reference, judge
from compress.measure.fidelity import noise_fraction
from compress.measure.latency import Comparison
from compress.measure.memory import MemoryProbe
from compress.measure.quality import within_budget
from compress.measure.size import sha256, size_bytes
from compress.progress import Progress
from compress.result import ArtifactReport, Baseline, Throughput, Undelivered, Verdict
from compress.spec import EngineSpec, Format
from compress.structure import cast_floats

_ORIGINAL = "original"
"""The original's name among files; artifacts are called `model.…`."""
_MEMORY_END, _RACE_END = 0.15, 0.75
"""Where in the stage `benchmark` each part ends."""


@dataclass(frozen=True)
class Finished:
    """A file that was exported and found to answer like the model in memory.

    Attributes:
        path: Where it lies; its name is the artifact's name.
        format: What it is.
        precision: Number format of most of its weights, as `int8` or `mixed`.
    """

    path: Path
    format: Format
    precision: str


def appraise(
    intake: Intake,
    spec: EngineSpec,
    original: Path,
    artifacts: Sequence[Finished],
    progress: Progress,
    start_probe: Callable[[], MemoryProbe] | None = None,
    reference: Reference | None = None,
) -> tuple[Baseline, list[ArtifactReport], list[Undelivered]]:
    """Measure the original and all finished files: the stages `evaluate` and `benchmark`.

    A file that does not run on a sample which the original takes is removed, and told of in the
    last list.

    Args:
        intake: The job's data.
        spec: The job.
        original: The uploaded file.
        artifacts: The finished files, at least one, of names that differ.
        progress: Is told of both stages, and of figures that could not be measured and are missing.
        start_probe: Where memory is measured, if not in a fresh process.
        reference: The original's answers, where it has given them already.

    Raises:
        ModelFailed: The original itself raises on a sample.
        ExportFailed: Every finished file does.
    """
    device = device_of(spec.backend)
    contenders = {_ORIGINAL: Contender(original, None, spec.threads, device)}
    for each in artifacts:
        contenders[each.path.name] = Contender(each.path, each.format, spec.threads, device)
    with (start_probe or MemoryProbe)() as probe:  # imports torch while the answers are compared
        models = {name: contender.open() for name, contender in contenders.items()}
        first = models.pop(_ORIGINAL)
        progress.stage("evaluate", "comparing answers")
        judged = judge(
            reference or Reference(intake, spec, lambda: from_processor(first, device)),
            {name: from_processor(model, device) for name, model in models.items()},
            lambda done, total: progress.part(done / total, f"evaluating {done}/{total}"),
        )
        undelivered = []
        for each in [each for each in artifacts if each.path.name in judged.failed]:
            error = judged.failed[each.path.name]
            progress.warn(f"No {each.format} file: {error.message}")
            undelivered.append(
                Undelivered(format=each.format, code=error.code, reason=error.message)
            )
            del models[each.path.name], contenders[each.path.name]
            each.path.unlink()
        artifacts = [each for each in artifacts if each.path.name not in judged.failed]
        progress.stage("benchmark", "measuring memory")
        sample = cast_floats(intake.probes()[0], intake.dtype)
        if device.type == "cpu":
            peaks = measure_memory(probe, contenders, sample, progress.warn)
        else:
            peaks = measure_gpu_memory(contenders, sample, device)
    progress.part(_MEMORY_END, "timing all files in turn")
    raced = run_race(
        first,
        models,
        sample,
        lambda done: progress.part(
            _MEMORY_END + done * (_RACE_END - _MEMORY_END), "timing all files in turn"
        ),
        device,
    )
    typical_s = {name: one.candidate.p50 / 1e3 for name, one in raced.items()}
    typical_s[_ORIGINAL] = next(iter(raced.values())).baseline.p50 / 1e3
    throughput = {name: [_single(one_s)] for name, one_s in typical_s.items()}
    larger = run_batches(
        intake,
        {_ORIGINAL: first, **models},
        typical_s,
        max((sample_bytes(contenders[name].path, peak) for name, peak in peaks.items()), default=0),
        progress.warn,
        lambda done: progress.part(_RACE_END + done * (1 - _RACE_END), "timing larger batches"),
        device,
    )
    for name, measured in larger.items():
        throughput[name].extend(measured)
    baseline = Baseline(
        size_bytes=size_bytes(original),
        parameters=intake.parameters,
        latency_ms=next(iter(raced.values())).baseline,
        throughput_per_s=throughput[_ORIGINAL][0].samples_per_s,
        throughput=throughput[_ORIGINAL],
        peak_memory_bytes=peaks.get(_ORIGINAL),
        quality=judged.baseline,
    )
    return (
        baseline,
        [
            _report(
                each,
                baseline.size_bytes,
                judged.of(each.path.name),
                raced[each.path.name],
                throughput[each.path.name],
                peaks.get(each.path.name),
            )
            for each in artifacts
        ],
        undelivered,
    )


def _single(one_s: float) -> Throughput:
    """Batch 1 is what the race has timed."""
    return Throughput(batch_size=1, samples_per_s=1 / one_s)


def _report(
    finished: Finished,
    baseline_bytes: int,
    judged: Judged,
    raced: Comparison,
    throughput: list[Throughput],
    peak_bytes: int | None,
) -> ArtifactReport:
    """Gather one file's figures. Faster is only what the whole interval says is faster."""
    verdict: Verdict = "faster" if raced.speedup.ci95[0] > 1 else "not_faster"
    size = size_bytes(finished.path)
    return ArtifactReport(
        name=finished.path.name,
        format=finished.format,
        precision=finished.precision,
        size_bytes=size,
        sha256=sha256(finished.path),
        compression_ratio=baseline_bytes / size,
        verdict=verdict,
        speedup=raced.speedup,
        latency_ms=raced.candidate,
        throughput_per_s=throughput[0].samples_per_s,
        throughput=throughput,
        peak_memory_bytes=peak_bytes,
        quality=judged.quality,
        fidelity=judged.fidelity,
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
