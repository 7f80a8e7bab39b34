from __future__ import annotations

import random
import time
from collections.abc import Callable

import pytest

from compress.measure.latency import Comparison, race, ratio_interval, summarize, t_quantile
from tests.compress.measure.clock import Clock


def compare(
    baseline: Callable[[], object], candidate: Callable[[], object], **settings: float
) -> Comparison:
    return race(baseline, {"it": candidate}, **settings)["it"]  # type: ignore[arg-type]


def work(count: int) -> object:
    return sum(range(count))


@pytest.mark.slow
def test_the_ratio_of_known_work_lies_in_a_narrow_interval() -> None:
    comparison = compare(lambda: work(60_000), lambda: work(20_000), budget_s=3)
    low, high = comparison.speedup.ci95
    assert low <= comparison.speedup.value <= high
    assert 2 < comparison.speedup.value < 4.5
    assert comparison.baseline.runs >= 12


@pytest.mark.slow
def test_rare_long_calls_do_not_rule_the_ratio() -> None:
    """One call in fifty waits for another process, and is a hundred times longer."""
    calls = 0

    def hiccup() -> None:
        nonlocal calls
        calls += 1
        work(20_000)
        if calls % 50 == 0:
            time.sleep(0.05)

    comparison = compare(lambda: work(20_000), hiccup, budget_s=2)
    assert 0.7 < comparison.speedup.value < 1.4
    assert comparison.candidate.mean > 1.5 * comparison.candidate.p50  # told, not hidden


def test_it_stops_at_the_budget_when_noise_never_settles() -> None:
    chance = random.Random(0)
    start = time.perf_counter()
    compare(
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


def test_several_candidates_share_one_baseline_and_each_gets_its_ratio(clock: Clock) -> None:
    chance = random.Random(0)

    def model(name: str, typical_s: float) -> Callable[[], object]:
        return clock.model(name, lambda: typical_s * chance.uniform(0.95, 1.05))

    raced = race(
        model("baseline", 0.012),
        {
            "half": model("half", 0.006),
            "fifth": model("fifth", 0.0024),
            "same": model("same", 0.012),
        },
    )
    assert list(raced) == ["half", "fifth", "same"]
    for name, ratio in (("half", 2), ("fifth", 5), ("same", 1)):
        assert raced[name].speedup.value == pytest.approx(ratio, rel=0.02)
        assert raced[name].candidate.p50 == pytest.approx(12 / ratio, rel=0.02)
        assert raced[name].baseline.p50 == pytest.approx(12, rel=0.02)
    [runs] = {comparison.baseline.runs for comparison in raced.values()}
    rounds = runs / 2
    assert clock.calls.count("baseline") == 5 + 3 * rounds  # to warm up; one untimed, two timed


def test_a_candidate_that_is_known_leaves_and_the_noisy_one_goes_on(clock: Clock) -> None:
    chance = random.Random(0)
    raced = race(
        clock.model("baseline", lambda: 0.01),
        {"calm": clock.model("calm", lambda: 0.01),
         "wild": clock.model("wild", lambda: chance.uniform(0.001, 0.02))},
        budget_s=3,
    )  # fmt: skip
    assert raced["calm"].candidate.runs == 2 * 12  # as few rounds as an interval may rest on
    assert raced["wild"].candidate.runs == raced["wild"].baseline.runs > 2 * 12
    assert raced["calm"].speedup.ci95 == pytest.approx((1, 1))


def test_calls_right_after_a_switch_are_not_timed(clock: Clock) -> None:
    """Each model is ten times slower when another ran before it."""

    def model(name: str) -> Callable[[], object]:
        return clock.model(name, lambda: 0.002 if clock.calls[-1:] == [name] else 0.02)

    raced = race(model("a"), {"b": model("b"), "c": model("c")})
    for comparison in raced.values():
        assert comparison.candidate.p99 == pytest.approx(2)
        assert comparison.baseline.p99 == pytest.approx(2)


def test_slow_models_overrun_the_budget_by_six_rounds_at_most(clock: Clock) -> None:
    chance = random.Random(0)
    raced = race(
        clock.model("baseline", lambda: 10.0),
        {"it": clock.model("it", lambda: chance.uniform(1, 9))},
        budget_s=6,
    )
    assert raced["it"].candidate.runs == 6
    assert clock.calls.count("it") == 5 + 6


def test_no_candidates_no_race() -> None:
    assert race(lambda: None, {}, budget_s=0.1) == {}
