from __future__ import annotations

import resource

import pytest

from compress.measure import throughput
from compress.measure.throughput import affordable, free_bytes, measure_throughput
from tests.compress.measure.clock import Clock


def test_samples_per_second_are_those_of_known_work(clock: Clock) -> None:
    models = {"slow": clock.model("slow", lambda: 0.04), "fast": clock.model("fast", lambda: 0.01)}
    measured = measure_throughput(models, 8, budget_s=1)
    assert [each.batch_size for each in measured.values()] == [8, 8]
    assert measured["slow"].samples_per_s == pytest.approx(200)
    assert measured["fast"].samples_per_s == pytest.approx(800)


def test_rare_long_calls_do_not_count(clock: Clock) -> None:
    model = clock.model("it", lambda: 2.0 if len(clock.calls) % 9 == 8 else 0.01)
    measured = measure_throughput({"it": model}, 4, budget_s=9)
    assert measured["it"].samples_per_s == pytest.approx(400)


def test_every_model_gets_three_calls_however_long_they_take(clock: Clock) -> None:
    fractions: list[float] = []
    models = {name: clock.model(name, lambda: 0.25) for name in "ab"}
    measure_throughput(models, 32, budget_s=0.01, on_round=fractions.append)
    assert clock.calls == ["a", "a", "b", "b", *"ababab"]  # two to warm up, three timed
    assert fractions == [1.0] * 3


def test_what_takes_too_long_or_too_much_is_not_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    times = {"original": 0.03, "artifact": 0.01}
    assert affordable(8, times, 0, budget_s=1.7)
    assert not affordable(8, times, 0, budget_s=1.5)
    monkeypatch.setattr(throughput, "free_bytes", lambda: 1000)
    assert affordable(8, times, 31, budget_s=9)
    assert not affordable(8, times, 32, budget_s=9)


def test_free_memory_is_the_machines_or_the_limit_of_the_process() -> None:
    machine = free_bytes()
    assert machine > 2**20
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (2**36, hard))
    try:
        assert free_bytes() <= min(machine * 2, 2**36)
        resource.setrlimit(resource.RLIMIT_DATA, (1, hard))
        assert free_bytes() == 0
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
