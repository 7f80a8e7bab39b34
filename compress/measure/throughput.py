"""Throughput: samples per second at a batch size, all models in turn, by the median call.

A batch size is measured only where every model gets enough calls in the time there is, and where
a batch fits in memory: a job must not die of a figure.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median

import torch

from compress.devices import CPU
from compress.measure.timing import Call, Runner, enter, time_calls
from compress.result import Throughput

BATCH_SIZES = (1, 8, 32)
_WARM_CALLS = 2
_LEAST_ROUNDS = 3
_LONG_S = 0.2  # a call so long needs no company in its turn, and no untimed one before it
_MEMORY_SHARE = 0.25
"""Of what is free, that a batch may take."""


def affordable(
    batch_size: int,
    sample_s: Mapping[str, float],
    sample_bytes: int,
    budget_s: float,
    device: torch.device = CPU,
) -> bool:
    """Whether a batch size can be measured.

    Args:
        batch_size: Samples in a call.
        sample_s: Name to seconds that a call of one sample takes.
        sample_bytes: What a sample takes while a model runs.
        budget_s: What may be spent on it.
        device: Where models run.
    """
    free = free_bytes() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]
    fits = batch_size * sample_bytes <= _MEMORY_SHARE * free
    calls = _WARM_CALLS + _LEAST_ROUNDS
    return fits and batch_size * sum(sample_s.values()) * calls <= budget_s


def measure_throughput(
    calls: Mapping[str, Call],
    batch_size: int,
    *,
    budget_s: float,
    on_round: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Throughput]:
    """Time calls of `batch_size` samples, a batch of each model in turn.

    Args:
        calls: Name to what runs a model once on so many samples.
        batch_size: Samples in a call.
        budget_s: Stop after so many seconds, but not before each had three turns.
        on_round: Receives the fraction of the budget used.
    """
    start = time.perf_counter()
    runners = {name: _enter(call, budget_s / 8 / len(calls)) for name, call in calls.items()}
    rounds, used = 0, 0.0
    while rounds < _LEAST_ROUNDS or used < 1:
        for runner in runners.values():
            runner.run()
        rounds += 1
        used = (time.perf_counter() - start) / budget_s
        on_round(min(1.0, used))
    return {
        name: Throughput(batch_size=batch_size, samples_per_s=batch_size / median(runner.times_s))
        for name, runner in runners.items()
    }


def _enter(call: Call, warm_s: float) -> Runner:
    one_s = min(time_calls(call, _WARM_CALLS))
    return Runner(call, calls=1, skipped=0) if one_s >= _LONG_S else enter(call, warm_s)


def free_bytes() -> int:
    """Return the memory that this process can still get: the machine's, or its own limit's."""
    free = _field_bytes(Path("/proc/meminfo"), "MemAvailable")
    limit = resource.getrlimit(resource.RLIMIT_DATA)[0]
    if limit != resource.RLIM_INFINITY:
        free = min(free, limit - _field_bytes(Path("/proc/self/status"), "VmData"))
    return max(0, free)


def _field_bytes(path: Path, field: str) -> int:
    for line in path.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{path} has no {field}")
