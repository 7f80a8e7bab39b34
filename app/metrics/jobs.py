"""What is counted of finished jobs: names, labels and buckets."""

from __future__ import annotations

import bisect
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

STAGES = frozenset(
    {
        "fetch", "load", "lift", "calibrate", "train", "convert", "export", "evaluate",
        "benchmark", "store",
    }
)  # fmt: skip
_CODE = re.compile(r"[a-z][a-z0-9_]{0,39}")
_SECONDS = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 3600.0, 14400.0)
_BYTES = tuple(float(2**power) for power in range(27, 38))  # 128 MiB to 128 GiB

Series = tuple[str, tuple[str, ...]]
"""Name and values of labels."""


@dataclass(frozen=True)
class Metric:
    """A counter, or with buckets a histogram."""

    name: str
    help: str
    labels: tuple[str, ...]
    buckets: tuple[float, ...] = ()

    def count(self, *labels: str) -> Iterator[tuple[Series, float]]:
        """Yield what one event adds."""
        yield (self.name, labels), 1.0

    def observe(self, value: float, *labels: str) -> Iterator[tuple[Series, float]]:
        """Yield what one value adds: one to its bucket, and itself to the sum."""
        place = bisect.bisect_left(self.buckets, value)
        bound = repr(self.buckets[place]) if place < len(self.buckets) else "+Inf"
        yield (self.name, (*labels, bound)), 1.0
        yield (f"{self.name}_sum", labels), value


FINISHED = Metric("tersor_jobs_finished", "Jobs that ended.", ("kind", "method", "status"))
FAILURES = Metric("tersor_job_failures", "Jobs that failed, by code.", ("method", "code"))
WAIT = Metric(
    "tersor_job_wait_seconds", "From submit to the first start.", ("kind", "method"), _SECONDS
)
SECONDS = Metric("tersor_job_seconds", "From the first start to the end.", ("method",), _SECONDS)
STAGE = Metric("tersor_job_stage_seconds", "Time in each stage.", ("method", "stage"), _SECONDS)
MEMORY = Metric("tersor_job_memory_bytes", "Most memory of a job's process.", ("method",), _BYTES)
METRICS = (FINISHED, FAILURES, WAIT, SECONDS, STAGE, MEMORY)


def add_up(
    jobs: Iterable[Any], events: Mapping[str, list[tuple[datetime, str | None]]]
) -> dict[Series, float]:
    """Return what the jobs add to each series.

    Args:
        jobs: Rows with kind, method, status, error, times and peak memory.
        events: By job: when a stage began, or None when the job left the stage it was in.
    """
    total: defaultdict[Series, float] = defaultdict(float)
    for job in jobs:
        for series, value in _of_job(job, events.get(job.id, [])):
            total[series] += value
    return total


def _of_job(job: Any, events: list[tuple[datetime, str | None]]) -> Iterator[tuple[Series, float]]:
    yield from FINISHED.count(job.kind, job.method, job.status)
    if job.status == "failed":
        code = str((job.error or {}).get("code", ""))
        yield from FAILURES.count(job.method, code if _CODE.fullmatch(code) else "other")
    if job.started_at is None:
        return
    yield from WAIT.observe(_seconds(job.started_at - job.created_at), job.kind, job.method)
    if job.kind != "job":
        return
    yield from SECONDS.observe(_seconds(job.finished_at - job.started_at), job.method)
    for (began, stage), (ended, _next) in pairwise(events):
        if stage is not None:
            name = stage if stage in STAGES else "other"
            yield from STAGE.observe(_seconds(ended - began), job.method, name)
    if job.peak_memory_bytes:
        yield from MEMORY.observe(float(job.peak_memory_bytes), job.method)


def _seconds(span: timedelta) -> float:
    return max(0.0, span.total_seconds())  # clocks of two machines may differ


def pack(labels: tuple[str, ...]) -> str:
    """Return labels as the table holds them."""
    return json.dumps(labels)
