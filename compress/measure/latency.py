"""Paired latency: two models in turn, so that the machine's moods hit both alike.

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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist, median

from compress.result import Latency, Ratio

_TRIM = 0.2
_MIN_PAIRS = 12
_MIN_BATCH_S = 0.010
_WARM_CALLS = 5  # the JIT profiles its first calls and compiles in the next


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Latency of both, and `baseline / candidate`: above 1 the candidate is faster."""

    baseline: Latency
    candidate: Latency
    speedup: Ratio


def compare_latency(
    baseline: Callable[[], object],
    candidate: Callable[[], object],
    *,
    budget_s: float = 8.0,
    ci_width: float = 0.03,
    on_round: Callable[[float], None] = lambda fraction: None,
) -> Comparison:
    """Time two calls against each other until the ratio is known well enough.

    Args:
        baseline: Calls the original once.
        candidate: Calls the artifact once.
        budget_s: Stop after so many seconds, however wide the interval still is.
        ci_width: Stop when the 95 % interval's whole width is under this fraction of the ratio.
        on_round: Receives the fraction of the budget used.
    """
    start = time.perf_counter()
    first_s, second_s = _warm(baseline, budget_s / 8), _warm(candidate, budget_s / 8)
    calls = (_calls(first_s), _calls(second_s))
    times: tuple[list[float], list[float]] = ([], [])
    log_ratios: list[float] = []
    while True:
        # who goes first alternates, so that neither always runs on the other's heels
        order = (0, 1) if len(log_ratios) % 2 == 0 else (1, 0)
        typical = [0.0, 0.0]
        for side in order:
            call = (baseline, candidate)[side]
            batch = _time(call, calls[side])
            times[side].extend(batch)
            typical[side] = median(batch)
        log_ratios.append(math.log(typical[0] / typical[1]))
        used = (time.perf_counter() - start) / budget_s
        on_round(min(1.0, used))
        if len(log_ratios) >= _MIN_PAIRS:
            ratio = ratio_interval(log_ratios)
            if used >= 1 or (ratio.ci95[1] - ratio.ci95[0]) < ci_width * ratio.value:
                return Comparison(
                    baseline=summarize(times[0]), candidate=summarize(times[1]), speedup=ratio
                )


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


def _warm(call: Callable[[], object], budget_s: float) -> float:
    """Call until times settle (three in a row within a tenth of the best), and return the best."""
    start = time.perf_counter()
    seen: list[float] = []
    while True:
        seen.extend(_time(call, 1))
        best = min(seen)
        settled = len(seen) >= _WARM_CALLS and max(seen[-3:]) <= 1.1 * best
        if settled or (len(seen) >= _WARM_CALLS and time.perf_counter() - start > budget_s):
            return best


def _calls(one_s: float) -> int:
    return max(1, min(1000, math.ceil(_MIN_BATCH_S / max(one_s, 1e-9))))


def _time(call: Callable[[], object], calls: int) -> list[float]:
    times = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return times
