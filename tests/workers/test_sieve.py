"""What is kept of a long training's events, and of a flood."""

from __future__ import annotations

from typing import Any

import pytest

from workers import sieve
from workers.sieve import Note, Sieve


class Clock:
    """Stands still until told otherwise."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def figures(*, is_epoch: bool = False, **data: Any) -> Note:
    return Note("metrics", "epoch", {"step": 1, "is_epoch": is_epoch} | data)


@pytest.mark.slow
def test_of_a_week_of_figures_every_epoch_is_kept_and_few_in_between() -> None:
    clock = Clock()
    judge = Sieve(clock).judge
    kept = {"epoch": 0, "between": 0, "first minute": 0}
    for tick in range(7 * 24 * 3600 // 2):
        clock.now_s += 2
        if tick % 30 == 29:
            kept["epoch"] += judge(figures(is_epoch=True)) == "keep"
        verdict = judge(figures())
        kept["between"] += verdict == "keep"
        kept["first minute"] += verdict == "keep" and tick < 30
    assert kept["epoch"] == 7 * 24 * 60
    assert kept["first minute"] == 30
    assert 500 < kept["between"] < 1500
    assert judge(Note("log", "still heard")) == "keep"


def test_quick_epochs_are_all_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    judge = Sieve(Clock()).judge
    assert {judge(figures(is_epoch=True)) for _ in range(20_000)} == {"keep"}


def test_a_flood_is_cut_off_with_one_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sieve, "EVENTS_KEPT", 5)
    monkeypatch.setattr(sieve, "EPOCHS_KEPT", 3)
    clock = Clock()
    judge = Sieve(clock).judge
    assert [judge(figures(is_epoch=True)) for _ in range(3)] == ["keep"] * 3
    verdicts = []
    for number in range(8):
        clock.now_s += 100
        verdicts.append(judge(Note("log", "") if number % 2 else figures(is_epoch=True)))
    assert verdicts == ["keep"] * 4 + ["last"] + ["drop"] * 3


def test_what_calls_itself_an_epoch_but_is_large_counts_as_any_event() -> None:
    judge = Sieve(Clock()).judge
    large = figures(is_epoch=True, parts="x" * 5000)
    assert [judge(large) for _ in range(3)] == ["keep", "drop", "drop"]
