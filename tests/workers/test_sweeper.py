from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timedelta
from functools import lru_cache
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError, OperationalError

from app.db import Database, utc_now
from app.jobs.tables import Job, JobDataset, WorkerSeen
from app.queue import QueueName
from app.settings import Settings
from app.storage import LocalBlobStore
from tests.databases import on_postgresql
from tests.workers.rows import add_job, get_job, statuses_of
from workers.identity import own_name
from workers.lease import claim
from workers.sweeper import Sweeper


class SentMessages:
    """In the place of the broker's client: keeps what would be sent."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, job_id: str, queue_name: QueueName) -> None:
        self.sent.append(job_id)


@pytest.fixture
def sent(database: Database) -> list[str]:
    messages = SentMessages()
    database._publisher = messages  # type: ignore[assignment]
    return messages.sent


def make_sweeper(
    settings: Settings,
    database: Database,
    store: LocalBlobStore,
    slots: int = 2,
    running: frozenset[str] = frozenset(),
) -> Sweeper:
    machine: Mapping[str, Any] = {"devices": ["cpu"]}
    return Sweeper(
        settings, database, store, queues=("cpu",), slots=slots,
        running=lambda: running, machine=lambda: machine,
    )  # fmt: skip


@pytest.fixture
def sweeper(settings: Settings, database: Database, store: LocalBlobStore) -> Sweeper:
    sweeper = make_sweeper(settings, database, store)
    sweeper.sweep()  # the first one learns that time passes as it should
    return sweeper


def run_under(database: Database, owner: str, expires_in_s: float, **values: Any) -> str:
    job_id = add_job(database)
    with database.write() as session:
        assert claim(session, ("cpu",), owner, 30) is not None
        job = session.get(Job, job_id)
        assert job is not None
        job.lease_expires_at = utc_now() + timedelta(seconds=expires_in_s)
        for name, value in values.items():
            setattr(job, name, value)
    return job_id


@lru_cache(maxsize=1)
def dead_neighbour() -> str:
    """The name of a process that ran on this host and has ended."""
    done = subprocess.run(
        [sys.executable, "-c", "from workers.identity import own_name; print(own_name())"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_a_message_is_sent_again_only_when_the_job_waits_too_long(
    database: Database, sweeper: Sweeper, sent: list[str]
) -> None:
    add_job(database)
    late = add_job(database, message_sent_at=utc_now() - timedelta(seconds=11))
    add_job(database, queue="gpu", message_sent_at=utc_now() - timedelta(seconds=11))
    sweeper.sweep()
    assert sent == [late]
    sweeper.sweep()
    assert sent == [late], "it was sent a moment ago"


def test_no_more_messages_are_sent_than_slots_are_free(
    settings: Settings, database: Database, store: LocalBlobStore, sent: list[str]
) -> None:
    long_ago = utc_now() - timedelta(hours=1)
    jobs = [add_job(database, message_sent_at=long_ago) for _ in range(5)]
    make_sweeper(settings, database, store, 2, frozenset({"a-1", "b-1"})).sweep()
    assert sent == []
    make_sweeper(settings, database, store, 3, frozenset({"a-1"})).sweep()
    assert sent == jobs[:2]


def test_an_expired_lease_of_a_far_owner_returns_to_the_queue(
    database: Database, sweeper: Sweeper, sent: list[str], store: LocalBlobStore
) -> None:
    job_id = run_under(database, "other-host/1/2/3", -1)
    kept = run_under(database, "other-host/1/2/4", +5)
    (store.root / f"jobs/{job_id}/1").mkdir(parents=True)
    sweeper.sweep()
    assert get_job(database, job_id).status == "queued"
    assert get_job(database, job_id).attempt == 1, "this attempt counts"
    assert get_job(database, kept).status == "running"
    assert sent == [job_id]
    assert statuses_of(database, job_id) == ["running", "queued"]
    assert not (store.root / f"jobs/{job_id}/1").exists()


def test_a_dead_neighbour_is_noticed_before_its_lease_runs_out(
    database: Database, sweeper: Sweeper
) -> None:
    dead = run_under(database, dead_neighbour(), +1000)
    alive = run_under(database, own_name(), +1000)
    sweeper.sweep()
    assert get_job(database, dead).status == "queued"
    assert get_job(database, alive).status == "running"


def test_after_max_attempts_a_dead_owner_fails_the_job(
    database: Database, sweeper: Sweeper
) -> None:
    job_id = run_under(database, dead_neighbour(), +1000, attempt=3)
    sweeper.sweep()
    job = get_job(database, job_id)
    assert job.error is not None
    assert (job.status, job.error["code"], job.error["retryable"]) == (
        "failed", "worker_lost", True,
    )  # fmt: skip


def test_a_cancel_is_finished_when_the_owner_died(database: Database, sweeper: Sweeper) -> None:
    job_id = run_under(database, dead_neighbour(), +1000, cancel_requested_at=utc_now())
    sweeper.sweep()
    assert get_job(database, job_id).status == "cancelled"


def test_after_being_held_up_itself_the_sweeper_gives_owners_time_to_renew(
    settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    job_id = run_under(database, "other-host/1/2/3", -1)
    sweeper = make_sweeper(settings, database, store)
    sweeper.sweep()  # it does not know how long it was away
    assert get_job(database, job_id).status == "running"
    assert sweeper._expiries._looked_at is not None
    sweeper._expiries._looked_at -= timedelta(seconds=100)  # the machine slept
    sweeper.sweep()
    assert get_job(database, job_id).status == "running"
    sweeper.sweep()
    assert get_job(database, job_id).status == "queued"


@pytest.mark.slow
@on_postgresql  # on SQLite a write locks the whole database
def test_a_row_that_a_frozen_worker_holds_does_not_hold_up_the_others(
    settings: Settings, database: Database, sweeper: Sweeper
) -> None:
    held = run_under(database, "other-host/1/2/3", -1)
    other = run_under(database, "other-host/1/2/4", -1)
    settings.database.busy_timeout_s = 1.0
    frozen = Database(settings)  # as a worker would be that got SIGSTOP in mid-write
    with pytest.raises(DBAPIError), frozen.write() as session:  # noqa: PT012
        session.get_one(Job, held, with_for_update=True)
        sweeper.sweep()
        assert get_job(database, held).status == "running"
        assert get_job(database, other).status == "queued"
        time.sleep(1.3)  # PostgreSQL takes the lock from it
        sweeper.sweep()
        assert get_job(database, held).status == "queued"
        session.execute(select(1))
    frozen.close()


def test_folders_of_ended_attempts_are_removed_and_running_ones_kept(
    settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    elsewhere = run_under(database, own_name(), +100)
    work = settings.data_dir / "work"
    for name in (f"{elsewhere}-1", f"{elsewhere}-0", "job_gone-1", "job_mine-2"):
        (work / name / "out").mkdir(parents=True)
    make_sweeper(settings, database, store, 2, frozenset({"job_mine-2"})).sweep()
    assert {path.name for path in work.iterdir()} == {f"{elsewhere}-1", "job_mine-2"}


def test_checkpoints_stay_until_their_job_has_ended(
    settings: Settings, database: Database, sweeper: Sweeper
) -> None:
    jobs = {
        status: add_job(database, status=status)
        for status in ("queued", "running", "succeeded", "failed", "cancelled")
    }
    folder = settings.data_dir / "checkpoints"
    for job_id in (*jobs.values(), "job_gone"):
        (folder / job_id / "1").mkdir(parents=True)
        (folder / job_id / "1" / "qat.checkpoint").write_text("state")
    sweeper.remove_checkpoints()
    assert {path.name for path in folder.iterdir()} == {jobs["queued"], jobs["running"]}
    assert len(list(folder.rglob("*.checkpoint"))) == 2


def test_preflights_that_ended_long_ago_are_forgotten_and_jobs_never(
    database: Database, sweeper: Sweeper
) -> None:
    long_ago = utc_now() - timedelta(days=2)
    ended = {"status": "succeeded", "finished_at": long_ago}
    old = add_job(database, kind="preflight", datasets={"calibration": "dst_x"}, **ended)
    new = add_job(database, kind="preflight", **(ended | {"finished_at": utc_now()}))
    waiting = add_job(database, kind="preflight", created_at=long_ago)
    job = add_job(database, **ended)
    sweeper.forget_preflights()
    with database.read() as session:
        assert set(session.scalars(select(Job.id))) == {new, waiting, job}
        assert session.scalars(select(JobDataset).where(JobDataset.job_id == old)).all() == []


@pytest.mark.slow
def test_a_worker_is_listed_while_it_lives(
    settings: Settings, database: Database, store: LocalBlobStore
) -> None:
    dead = dead_neighbour()
    with database.write() as session:
        for worker_id, age_s in ((dead, 0), ("far/1/2/3", 5), ("far/1/2/4", 3600)):
            session.add(
                WorkerSeen(
                    id=worker_id, queues=["cpu"], slots=1, info={}, started_at=utc_now(),
                    seen_at=utc_now() - timedelta(seconds=age_s),
                )
            )  # fmt: skip
    sweeper = make_sweeper(settings, database, store)
    sweeper.start()
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and dead in _workers(database):
        time.sleep(0.05)
    assert _workers(database) == {own_name(), "far/1/2/3"}
    sweeper.stop(10)
    assert _workers(database) == {"far/1/2/3"}


def test_a_failing_duty_does_not_stop_the_others(
    database: Database, sweeper: Sweeper, sent: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise OperationalError("select", {}, Exception("database is locked"))

    broken.__name__ = "show_up"
    monkeypatch.setattr(sweeper, "show_up", broken)
    late = add_job(database, message_sent_at=utc_now() - timedelta(seconds=11))
    sweeper.sweep()
    assert sent == [late]


def _workers(database: Database) -> set[str]:
    with database.read() as session:
        return set(session.scalars(select(WorkerSeen.id)))
