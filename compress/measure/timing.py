"""Timed calls in batches, each batch after calls that get over the switch from another model.

A switch costs: the first calls after another model has run find cold caches, and threads of another
engine that still spin. Seen: a net of 0.06 ms takes 0.37 ms at first, and its own time again after
a millisecond; one of 67 ms in OpenVINO takes 89 ms once. These calls go by untimed, so that each
figure is what the model takes alone.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch

_BATCH_S = 0.010
_MAX_CALLS = 1000
_WARM_CALLS = 5  # the JIT profiles its first calls and compiles in the next
_SWITCH_S = 0.003
_SWITCH_CALLS = 50
_LONG_S = 1.0  # a call so long dwarfs what a switch costs

Call = Callable[[], object]
"""Runs a model once."""


@dataclass(frozen=True)
class GpuCall:
    """A call that a GPU computes: timed there, from its first kernel's turn until its last is done.

    Work for a GPU is queued: the call itself returns before it is done.
    """

    run: Call

    def __call__(self) -> object:
        """Queue its work."""
        return self.run()


@dataclass
class Runner:
    """One model among several that take turns.

    Attributes:
        call: Runs it once.
        calls: Timed calls in a batch.
        skipped: Untimed calls before a batch.
        times_s: Seconds of all timed calls.
    """

    call: Call
    calls: int
    skipped: int
    times_s: list[float] = field(default_factory=list)

    def run(self) -> float:
        """Time one batch; return its median call in seconds."""
        time_calls(self.call, self.skipped)
        batch_s = time_calls(self.call, self.calls)
        self.times_s.extend(batch_s)
        return median(batch_s)


def enter(call: Call, warm_s: float) -> Runner:
    """Warm a model up for at most about `warm_s` seconds, and size its batches by its best call."""
    one_s = max(_warm(call, warm_s), 1e-9)
    if one_s >= _LONG_S:
        return Runner(call, calls=1, skipped=0)
    return Runner(
        call,
        calls=max(2, min(_MAX_CALLS, math.ceil(_BATCH_S / one_s))),
        skipped=max(1, min(_SWITCH_CALLS, math.ceil(_SWITCH_S / one_s))),
    )


def time_calls(call: Call, calls: int) -> list[float]:
    """Return the seconds that each of so many calls takes."""
    if isinstance(call, GpuCall):
        return _time_on_gpu(call, calls)
    times_s = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times_s.append(time.perf_counter() - start)
    return times_s


def _time_on_gpu(call: Call, calls: int) -> list[float]:
    times_s = []
    for _ in range(calls):
        began: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        ended: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        began.record()
        call()
        ended.record()
        ended.synchronize()
        times_s.append(began.elapsed_time(ended) / 1e3)
    return times_s


def _warm(call: Call, budget_s: float) -> float:
    """Call until times settle (three in a row within a tenth of the best), and return the best."""
    start = time.perf_counter()
    seen: list[float] = []
    while True:
        seen.extend(time_calls(call, 1))
        best = min(seen)
        settled = len(seen) >= _WARM_CALLS and max(seen[-3:]) <= 1.1 * best
        if settled or (len(seen) >= _WARM_CALLS and time.perf_counter() - start > budget_s):
            return best
