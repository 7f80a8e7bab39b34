"""How figures, sizes, times and jobs look as text."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import typer

from tersor.cli.session import print_table
from tersor.jobs import Job
from tersor.views import Artifact, Quality, Ratio, Result

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")
_VERDICTS = {"faster": "faster", "not_faster": "not faster", "not_measured": "not measured"}
_TRAINED = {"teacher": "teacher", "student_before": "before", "student_after": "after"}
NOTHING = "-"


def size(size_bytes: float | None) -> str:
    """Return `11.3 MiB`."""
    if size_bytes is None:
        return NOTHING
    value = float(size_bytes)
    for unit in _UNITS:
        if value < 1024 or unit == _UNITS[-1]:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    raise AssertionError("unreachable: the last unit takes all")


def age(moment: datetime | None) -> str:
    """Return how long ago, in the largest whole unit."""
    if moment is None:
        return NOTHING
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


def clock(moment: datetime | None) -> str:
    """Return date and time in UTC, to the second."""
    return NOTHING if moment is None else moment.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S")


def milliseconds(value: float | None) -> str:
    """Return three significant digits, such as `0.0521` or `5.21`."""
    return NOTHING if value is None else f"{value:.3g}"


def print_result(result: Result) -> None:
    """Print baseline and artifacts, one a row, the recommended one marked."""
    base = result.baseline
    rows = [
        [
            "", "original", size(base.size_bytes), NOTHING,
            milliseconds(base.latency_ms.p50 if base.latency_ms else None), NOTHING,
            _quality(base.quality), NOTHING, NOTHING,
        ]
    ]  # fmt: skip
    rows += [_artifact_row(artifact, result.recommended) for artifact in result.artifacts]
    metric = next((q.metric for q in [base.quality] if q), None) or "quality"
    # fmt: off
    print_table(
        ["", "file", "size", "smaller", "p50 ms", "speedup (95 % ci)", metric, "drop", "verdict"],
        rows,
    )
    # fmt: on
    budget = "the accuracy budget"
    if result.max_accuracy_drop is not None:
        budget += f" of {result.max_accuracy_drop:g}"
    if result.recommended:
        typer.echo(f"* recommended: within {budget}, smaller or faster, not shown to be slower")
    else:
        typer.echo(f"none is recommended, keep the original: slower, or over {budget}")
    _print_training(result.training or {})
    for each in result.undelivered:
        typer.echo(f"  no {each.format} file: {each.reason}")
    kept = [layer for layer in result.layers if layer.reason]
    for layer in kept[:10]:
        typer.echo(f"  {layer.name} stayed {layer.precision}: {layer.reason}")
    if len(kept) > 10:
        typer.echo(f"  and {len(kept) - 10} more; see the result's layers (--json)")


def say_place(queue_position: int | None) -> str:
    """Return a job's place in its queue in words; the service counts no further than a thousand."""
    if queue_position is None:
        return ""
    return f"number {queue_position}{' or later' if queue_position >= 1000 else ''} in line"


def job_line(job: Job) -> str:
    """Return one plain line that says how far a job is."""
    if job.finished:
        reason = f": {job.error.code}: {job.error.message}" if job.error else ""
        return f"{job.id} {job.status}{reason}"
    if job.status == "queued":
        place = say_place(job.queue_position)
        return f"{job.id} queued{place and ', '}{place}"
    left = f", {job.eta_seconds:.0f} s left" if job.eta_seconds is not None else ""
    return f"{job.id} {job.stage or 'starting'} {job.progress:4.0%}{left}  {job.message}".rstrip()


def _print_training(training: Mapping[str, Any]) -> None:
    """Print what training won, where qualities were measured."""
    told = [
        f"{label} {quality['value']:.4f}"
        for name, label in _TRAINED.items()
        if (quality := training.get(name)) and isinstance(quality.get("value"), int | float)
    ]
    if told:
        metric = (training.get("student_after") or {}).get("metric") or "quality"
        typer.echo(f"  trained, {metric}: {', '.join(told)}")


def _artifact_row(artifact: Artifact, recommended: str | None) -> list[str]:
    quality = artifact.quality
    drop = quality.drop if quality else None
    return [
        "*" if artifact.id == recommended else "",
        artifact.name,
        size(artifact.size_bytes),
        NOTHING if artifact.compression_ratio is None else f"{artifact.compression_ratio:.2f}x",
        milliseconds(artifact.latency_ms.p50 if artifact.latency_ms else None),
        _speedup(artifact.speedup),
        _quality(quality),
        NOTHING if drop is None else f"{drop:+.4f}",
        _VERDICTS.get(artifact.verdict, artifact.verdict),
    ]


def _quality(quality: Quality | None) -> str:
    return NOTHING if quality is None or quality.value is None else f"{quality.value:.4f}"


def _speedup(speedup: Ratio | None) -> str:
    if speedup is None or speedup.value is None:
        return NOTHING
    if speedup.ci95 is None:
        return f"{speedup.value:.2f}x"
    low, high = speedup.ci95
    return f"{speedup.value:.2f}x ({low:.2f}-{high:.2f})"
