"""A result as the texts and rows that the template lays out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from compress.report.details import (
    MAX_ROWS,
    OPEN_ROWS,
    environment_rows,
    layer_row,
    lift_view,
    plain,
)
from compress.report.formats import (
    bytes_text,
    decibels,
    drop_text,
    milliseconds,
    quality_text,
    significant,
    times,
)
from compress.report.mixed import mixed_tables
from compress.report.training import training_tables
from compress.result import ArtifactReport, Baseline, Quality, Result


def view(result: Result) -> dict[str, Any]:
    """Return what the template shows, by name."""
    baseline = result.baseline
    chosen = next((a for a in result.artifacts if a.name == result.recommended), None)
    return {
        "title": _title(chosen, result),
        "files": [_baseline_row(baseline), *(_artifact_row(a, result) for a in result.artifacts)],
        "recommended": result.recommended,
        "recommendation": _recommendation(chosen, result),
        "others": [
            {"name": a.name, "why": _why_not(a, chosen, baseline)}
            for a in result.artifacts
            if a is not chosen
        ],
        "cards": _cards(chosen or _fastest(result.artifacts), baseline),
        "metric": baseline.quality.metric if baseline.quality else None,
        "samples": baseline.quality.samples if baseline.quality else None,
        "runs": baseline.latency_ms.runs if baseline.latency_ms else None,
        "batch_sizes": [each.batch_size for each in baseline.throughput],
        "throughput": _throughput_rows(result),
        "undelivered": result.undelivered,
        "layers": [layer_row(layer) for layer in result.layers[:MAX_ROWS]],
        "layers_left_out": max(0, len(result.layers) - MAX_ROWS),
        "layers_folded": len(result.layers) > OPEN_ROWS,
        "layer_counts": Counter(layer.precision for layer in result.layers).most_common(),
        "layer_bytes": [
            bytes_text(sum(layer.size_bytes[side] for layer in result.layers)) for side in (0, 1)
        ],
        "lift": lift_view(result.lift),
        "mixed": mixed_tables(result),
        "training": training_tables(result),
        "environment": environment_rows(result),
        "provenance": [(name, plain(value)) for name, value in result.provenance.items()],
        "threads": result.environment.threads,
    }


def _title(chosen: ArtifactReport | None, result: Result) -> str:
    if chosen is None:
        return "No file is better than the original"
    told = []
    if chosen.verdict == "faster" and chosen.speedup is not None:
        told.append(f"{times(chosen.speedup.value)} faster")
    if chosen.compression_ratio > 1:
        told.append(f"{times(chosen.compression_ratio)} smaller")
    return ", ".join(told) or "As fast and as small as the original"


def _baseline_row(baseline: Baseline) -> dict[str, Any]:
    latency = baseline.latency_ms
    return {
        "name": "Original",
        "format": "torchscript",
        "precision": "as uploaded",
        "size": bytes_text(baseline.size_bytes),
        "ratio": times(1.0),
        **_latency(latency),
        "speedup": times(1.0),
        "interval": "",
        "verdict": "original",
        "quality": _quality(baseline.quality),
        "drop": "",
        "sqnr": "",
        "agreement": "",
        "memory": bytes_text(baseline.peak_memory_bytes),
        "throughput": _per_second(baseline.throughput_per_s),
    }


def _artifact_row(artifact: ArtifactReport, result: Result) -> dict[str, Any]:
    speedup, fidelity = artifact.speedup, artifact.fidelity
    agreement = fidelity.top1_agreement if fidelity else None
    return {
        "name": artifact.name,
        "format": artifact.format,
        "precision": artifact.precision,
        "size": bytes_text(artifact.size_bytes),
        "ratio": times(artifact.compression_ratio),
        **_latency(artifact.latency_ms),
        "speedup": times(speedup.value if speedup else None),
        "interval": _interval(speedup.ci95) if speedup else "",
        "verdict": artifact.verdict.replace("_", " "),
        "quality": _quality(artifact.quality),
        "drop": _drop(artifact, result.baseline),
        "sqnr": decibels(fidelity.sqnr_db if fidelity else None),
        "agreement": f"{100 * agreement:.2f} %" if agreement is not None else "",
        "memory": bytes_text(artifact.peak_memory_bytes),
        "throughput": _per_second(artifact.throughput_per_s),
    }


def _latency(latency: Any) -> dict[str, str]:
    return {
        name: milliseconds(getattr(latency, name) if latency else None)
        for name in ("p50", "p90", "p99")
    }


def _interval(ci95: tuple[float, float]) -> str:
    return f"{significant(ci95[0])} to {significant(ci95[1])}"


def _quality(quality: Quality | None) -> str:
    return quality_text(quality.metric, quality.value) if quality else ""


def _drop(artifact: ArtifactReport, baseline: Baseline) -> str:
    if artifact.quality is None or baseline.quality is None:
        return ""
    return drop_text(artifact.quality.metric, artifact.quality.drop, baseline.quality.value)


def _per_second(value: float | None) -> str:
    return "–" if value is None else f"{significant(value)}/s"


def _recommendation(chosen: ArtifactReport | None, result: Result) -> str:
    baseline, budget = result.baseline, f"the accuracy budget of {result.max_accuracy_drop:g}"
    if chosen is None:
        return f"Keep the original: no file is both within {budget} and of any gain."
    told = []
    if chosen.speedup is not None:
        told.append(
            f"it runs at {times(chosen.speedup.value)} the original's speed (95 % interval "
            f"{_interval(chosen.speedup.ci95)})"
        )
    told.append(
        f"its file is {bytes_text(chosen.size_bytes)} instead of {bytes_text(baseline.size_bytes)}"
    )
    if chosen.quality is not None and baseline.quality is not None:
        metric = chosen.quality.metric
        told.append(f"{metric} is {_quality(chosen.quality)} ({_drop(chosen, baseline)})")
    elif chosen.fidelity is not None:
        told.append(f"its answers are {decibels(chosen.fidelity.sqnr_db)} above the noise")
    return f"Of the files within {budget} it is the fastest: " + "; ".join(told) + "."


def _why_not(artifact: ArtifactReport, chosen: ArtifactReport | None, baseline: Baseline) -> str:
    """Say why a file is not the one recommended, from the figures that `recommend` goes by."""
    speedup = artifact.speedup
    if speedup is not None and speedup.ci95[1] < 1:
        return "It is slower than the original."
    if artifact.verdict != "faster" and artifact.compression_ratio <= 1:
        return "It is neither faster nor smaller than the original."
    if chosen is not None and _speed(artifact) <= _speed(chosen):
        return "It is not the fastest of those that gain."
    drop = _drop(artifact, baseline)
    if drop:
        return f"Its quality leaves the accuracy budget: {drop}."
    sqnr = decibels(artifact.fidelity.sqnr_db if artifact.fidelity else None)
    return f"Its answers differ by more than the accuracy budget: SQNR {sqnr}."


def _speed(artifact: ArtifactReport) -> float:
    return artifact.speedup.value if artifact.speedup else 0.0


def _fastest(artifacts: Sequence[ArtifactReport]) -> ArtifactReport | None:
    return max(artifacts, key=_speed, default=None)


def _cards(shown: ArtifactReport | None, baseline: Baseline) -> list[dict[str, str]]:
    """Return the three or four figures at the top: what was, what is."""
    if shown is None:
        return []
    cards = [
        _card("Size", bytes_text(baseline.size_bytes), bytes_text(shown.size_bytes),
              f"{times(shown.compression_ratio)} smaller"
              if shown.compression_ratio > 1 else "not smaller"),
    ]  # fmt: skip
    if shown.latency_ms and baseline.latency_ms and shown.speedup:
        cards.append(
            _card("Latency, median", milliseconds(baseline.latency_ms.p50),
                  milliseconds(shown.latency_ms.p50),
                  f"{times(shown.speedup.value)} the speed")
        )  # fmt: skip
    if shown.quality and baseline.quality:
        cards.append(
            _card(f"Quality, {shown.quality.metric}", _quality(baseline.quality),
                  _quality(shown.quality), _drop(shown, baseline))
        )  # fmt: skip
    if shown.peak_memory_bytes and baseline.peak_memory_bytes:  # a tiny file may take none
        ratio = baseline.peak_memory_bytes / shown.peak_memory_bytes
        cards.append(
            _card("Peak memory", bytes_text(baseline.peak_memory_bytes),
                  bytes_text(shown.peak_memory_bytes),
                  f"{times(ratio)} less" if ratio > 1 else f"{times(1 / ratio)} the original's")
        )  # fmt: skip
    return cards


def _card(label: str, before: str, after: str, note: str) -> dict[str, str]:
    return {"label": label, "before": before, "after": after, "note": note}


def _throughput_rows(result: Result) -> list[dict[str, Any]]:
    named = [("Original", result.baseline.throughput)]
    named += [(artifact.name, artifact.throughput) for artifact in result.artifacts]
    sizes = [each.batch_size for each in result.baseline.throughput]
    rows = []
    for name, measured in named:
        found = {each.batch_size: each.samples_per_s for each in measured}
        rows.append({"name": name, "rates": [_per_second(found.get(size)) for size in sizes]})
    return rows
