from __future__ import annotations

import random
import time

import pytest

from compress.measure.latency import compare_latency, ratio_interval, summarize, t_quantile


def work(count: int) -> object:
    return sum(range(count))


def test_the_ratio_of_known_work_lies_in_a_narrow_interval() -> None:
    comparison = compare_latency(lambda: work(60_000), lambda: work(20_000), budget_s=3)
    low, high = comparison.speedup.ci95
    assert low <= comparison.speedup.value <= high
    assert 2 < comparison.speedup.value < 4.5
    assert comparison.baseline.runs >= 12


def test_rare_long_calls_do_not_rule_the_ratio() -> None:
    """One call in fifty waits for another process, and is a hundred times longer."""
    calls = 0

    def hiccup() -> None:
        nonlocal calls
        calls += 1
        work(20_000)
        if calls % 50 == 0:
            time.sleep(0.05)

    comparison = compare_latency(lambda: work(20_000), hiccup, budget_s=2)
    assert 0.7 < comparison.speedup.value < 1.4
    assert comparison.candidate.mean > 1.5 * comparison.candidate.p50  # told, not hidden


def test_it_stops_at_the_budget_when_noise_never_settles() -> None:
    chance = random.Random(0)
    start = time.perf_counter()
    compare_latency(
        lambda: time.sleep(chance.uniform(0, 0.02)), lambda: work(10), budget_s=0.5, ci_width=1e-9
    )
    assert time.perf_counter() - start < 5


def test_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """95 % intervals of noisy pairs, every tenth hit by another process."""
    chance = random.Random(1)
    covered = 0
    for _ in range(300):
        logs = [
            0.5 + chance.gauss(0, 0.1) + (chance.choice([-2, 2]) if chance.random() < 0.1 else 0)
            for _ in range(25)
        ]
        low, high = ratio_interval(logs).ci95
        covered += low <= 1.6487212707 <= high
    assert covered >= 0.92 * 300


def test_one_wild_pair_hardly_widens_the_interval() -> None:
    chance = random.Random(2)
    calm = [chance.gauss(0.7, 0.02) for _ in range(20)]
    widths = []
    for logs in (calm, [*calm[:-1], 5.0]):
        low, high = ratio_interval(logs).ci95
        widths.append(high - low)
    assert widths[1] < 1.5 * widths[0]


@pytest.mark.parametrize(("degrees", "value"), [(5, 2.5706), (11, 2.2010), (30, 2.0423)])
def test_t_quantile_matches_the_table(degrees: int, value: float) -> None:
    assert t_quantile(0.975, degrees) == pytest.approx(value, rel=2e-3)


def test_percentiles_are_nearest_ranks_in_milliseconds() -> None:
    latency = summarize([i / 1000 for i in range(1, 101)])
    told = (latency.p50, latency.p90, latency.p99, latency.mean, latency.runs)
    assert told == pytest.approx((50, 90, 99, 50.5, 100))
