from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from workers.expiries import Expiries, Owned

START = datetime(2030, 1, 1, tzinfo=UTC)
OWNED = Owned("job_x", 1, "far/1/2/3", START)


def sweep(expiries: Expiries, at_s: float, lock_took_s: float, owned: Owned = OWNED) -> bool:
    """Look at `at_s`, and ask once the lock is there."""
    now = START + timedelta(seconds=at_s)
    expiries.look(now, {owned})
    return expiries.means_death(owned, now + timedelta(seconds=lock_took_s))


@pytest.fixture
def expiries() -> Expiries:
    return Expiries(sweep_s=5, heartbeat_s=5)


def test_after_an_undisturbed_sweep_a_lease_counts_at_once(expiries: Expiries) -> None:
    assert not sweep(expiries, 0, 0), "nobody knows what was before the first"
    assert sweep(expiries, 5, 0.1)


@pytest.mark.parametrize(("gap_s", "lock_took_s"), [(60, 0), (5, 10)])
def test_a_sweep_that_was_held_up_gives_owners_time(
    expiries: Expiries, gap_s: float, lock_took_s: float
) -> None:
    expiries.look(START, ())
    assert not sweep(expiries, gap_s, lock_took_s)


def test_where_every_sweep_is_held_up_the_third_look_counts(expiries: Expiries) -> None:
    assert [sweep(expiries, at_s, 6) for at_s in (0, 20, 40)] == [False, False, True]


def test_looks_without_time_for_a_heartbeat_between_are_one(expiries: Expiries) -> None:
    assert [sweep(expiries, at_s, 20) for at_s in (0, 1, 2, 3, 5, 10)] == [*[False] * 5, True]


def test_a_renewed_lease_begins_anew(expiries: Expiries) -> None:
    renewed = replace(OWNED, lease_expires_at=START + timedelta(seconds=25))
    assert not any(sweep(expiries, at_s, 6) for at_s in (0, 20))
    assert [sweep(expiries, at_s, 6, renewed) for at_s in (40, 60, 80)] == [False, False, True]
