"""Paired latency: all models in turn, so that the machine's moods hit them alike.

In a round each model gets one batch of calls, the original first in one round and last in the next;
a model whose ratio is known well enough leaves. A switch costs: the first calls after another model
has run find cold caches, and threads of another engine that still spin. They go by untimed, so that
each figure is what the model takes alone.

A batch counts by its median call, as the reported p50 does: among calls of microseconds on several
threads some are a thousand times longer, which says nothing of the model and would rule a mean.

The ratio's confidence interval is a t-interval on the log-ratios of paired batches, around their
20 % trimmed mean with winsorised variance (Tukey and McLaughlin 1963; Wilcox, "Introduction to
Robust Estimation", 4.3). A ratio's log is symmetric, where the ratio is not; pairing takes out slow
drift; trimming takes out the rare batch that another process fell into, which would blow up a
plain t-interval. Unlike a bootstrap it needs no random numbers and costs nothing per look.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist

from compress.measure.timing import Call, Runner, enter
from compress.result import Latency, Ratio

_TRIM = 0.2
_MIN_PAIRS = 12
_LEAST_PAIRS = 6  # where the budget has run out: a t-interval of fewer says next to nothing


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Latency of both, and `baseline / candidate`: above 1 the candidate is faster."""

    baseline: Latency
    candidate: Latency
    speedup: Ratio


@dataclass
class _Racer:
    """A model in the race, and the logs of how many times faster than the baseline it ran."""

    runner: Runner
    log_ratios: list[float] = field(default_factory=list)

    def settled(self, ci_width: float) -> bool:
        if len(self.log_ratios) < _MIN_PAIRS:
            return False
        ratio = ratio_interval(self.log_ratios)
        return ratio.ci95[1] - ratio.ci95[0] < ci_width * ratio.value


def race(
    baseline: Call,
    candidates: Mapping[str, Call],
    *,
    budget_s: float = 8.0,
    ci_width: float = 0.03,
    on_round: Callable[[float], None] = lambda fraction: None,
) -> dict[str, Comparison]:
    """Time calls against a baseline until each ratio is known well enough.

    Args:
        baseline: Calls the original once.
        candidates: Name to what calls an artifact once.
        budget_s: Stop after so many seconds in all, however wide the intervals still are; slow
            models overrun it by what six rounds take.
        ci_width: A candidate leaves when its 95 % interval's whole width is under this fraction of
            the ratio.
        on_round: Receives the fraction of the budget used.

    Returns:
        For each name its latency, the baseline's over the whole race, and their ratio.
    """
    start = time.perf_counter()
    warm_s = budget_s / 4 / (1 + len(candidates))
    first = enter(baseline, warm_s)
    racers = {name: _Racer(enter(call, warm_s)) for name, call in candidates.items()}
    racing = list(racers.values())
    rounds = 0
    while racing:
        # the order turns round, so that nobody always runs on the same one's heels
        forth = rounds % 2 == 0
        if forth:
            baseline_s = first.run()
        typical_s = {id(racer): racer.runner.run() for racer in racing[:: 1 if forth else -1]}
        if not forth:
            baseline_s = first.run()
        for racer in racing:
            racer.log_ratios.append(math.log(baseline_s / typical_s[id(racer)]))
        rounds += 1
        used = (time.perf_counter() - start) / budget_s
        on_round(min(1.0, used))
        if used >= 1 and rounds >= _LEAST_PAIRS:
            break
        racing = [racer for racer in racing if not racer.settled(ci_width)]
    return {
        name: Comparison(
            baseline=summarize(first.times_s),
            candidate=summarize(racer.runner.times_s),
            speedup=ratio_interval(racer.log_ratios),
        )
        for name, racer in racers.items()
    }


def ratio_interval(log_ratios: Sequence[float]) -> Ratio:
    """Return the typical ratio and its 95 % interval from logs of paired ratios (at least 5)."""
    values = sorted(log_ratios)
    count = len(values)
    cut = int(_TRIM * count)
    kept = values[cut : count - cut]
    center = sum(kept) / len(kept)
    winsorised = [kept[0]] * cut + kept + [kept[-1]] * cut
    mean = sum(winsorised) / count
    variance = sum((value - mean) ** 2 for value in winsorised) / (count - 1)
    error = math.sqrt(variance / count) / (1 - 2 * _TRIM)
    half = t_quantile(0.975, len(kept) - 1) * error
    return Ratio(value=math.exp(center), ci95=(math.exp(center - half), math.exp(center + half)))


def t_quantile(probability: float, degrees: int) -> float:
    """Return Student's t quantile by the Cornish-Fisher expansion (Abramowitz, Stegun 26.7.5).

    Within 1 % for `degrees` of 4 and more at 0.975.
    """
    z: float = NormalDist().inv_cdf(probability)
    terms = (
        (z**3 + z) / 4.0,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + math.fsum(term / degrees**power for power, term in enumerate(terms, 1))


def summarize(times_s: Sequence[float]) -> Latency:
    """Return percentiles (nearest rank) and the mean of single calls, in milliseconds."""
    ordered = sorted(times_s)

    def percentile_ms(fraction: float) -> float:
        return ordered[max(0, math.ceil(fraction * len(ordered)) - 1)] * 1e3

    return Latency(
        p50=percentile_ms(0.5),
        p90=percentile_ms(0.9),
        p99=percentile_ms(0.99),
        mean=sum(ordered) / len(ordered) * 1e3,
        runs=len(ordered),
    )
