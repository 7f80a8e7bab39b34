from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import update
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from app.db import Database, utc_now
from app.jobs.tables import Job
from tests.workers.rows import add_job, events_of, get_job
from workers import heartbeat as heartbeat_module
from workers import sieve
from workers.heartbeat import Heartbeat
from workers.lease import Claim, LeaseLost, claim
from workers.persist import GaveUp, persist
from workers.sieve import Note

TICK_S = 0.1


@pytest.fixture
def claimed(database: Database) -> Claim:
    add_job(database)
    with database.write() as session:
        claimed = claim(session, ("cpu",), "test/1/2/3", 30)
    assert claimed is not None
    return claimed


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat_module, "_TICK_S", TICK_S)
    monkeypatch.setattr(heartbeat_module, "_LOOK_S", TICK_S * 2)
    monkeypatch.setattr(sieve, "EVENTS_KEPT", 500)


@pytest.fixture
def heartbeat(database: Database, claimed: Claim) -> Iterator[Heartbeat]:
    heartbeat = Heartbeat(database, claimed, lease_s=30, heartbeat_s=5)
    heartbeat.start()
    yield heartbeat
    heartbeat.stop()


@pytest.mark.slow
def test_progress_is_written_at_most_once_a_tick(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    version = get_job(database, claimed.job_id).version
    began = time.monotonic()

    def is_written() -> bool:
        return get_job(database, claimed.job_id).version > version

    while (elapsed_s := time.monotonic() - began) < TICK_S * 4 or not is_written():
        assert elapsed_s < 10
        heartbeat.report_progress(elapsed_s / (elapsed_s + 1), "calibrating")
        time.sleep(0.001)
    elapsed_s = time.monotonic() - began
    job = get_job(database, claimed.job_id)
    assert 1 <= job.version - version <= elapsed_s / TICK_S
    assert 0 < job.progress < 1
    assert job.message == "calibrating"
    assert job.eta_seconds is not None
    assert 0 < job.eta_seconds < 5


def test_events_alone_are_written_and_leave_the_jobs_version(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    version = get_job(database, claimed.job_id).version
    before = len(events_of(database, claimed.job_id))
    heartbeat.report_event(Note("log", "by the way", None))
    deadline = time.monotonic() + 10
    while len(events_of(database, claimed.job_id)) == before:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert get_job(database, claimed.job_id).version == version


def test_the_most_memory_of_a_job_is_kept(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    for memory_bytes in (10**8, 3 * 10**8, 2 * 10**8, 301 * 10**6):  # the last adds too little
        heartbeat.report_memory(memory_bytes)
    heartbeat.stop()
    with database.write() as session:
        heartbeat.write_rest(session)
    assert get_job(database, claimed.job_id).peak_memory_bytes == 3 * 10**8


def test_an_event_is_dated_when_it_happened(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    time.sleep(0.05)
    before = utc_now()
    heartbeat.report_event(Note("log", "hello", {"a": 1}))
    after = utc_now()
    wait_for(lambda: len(events_of(database, claimed.job_id)) == 2)
    event = events_of(database, claimed.job_id)[-1]
    assert before <= event.created_at <= after
    assert (event.type, event.message, event.data) == ("log", "hello", {"a": 1})


def test_a_cancel_is_learned_of_long_before_five_seconds(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    with database.write() as session:
        session.execute(update(Job).values(cancel_requested_at=utc_now()))
    assert heartbeat.cancel_requested.wait(2.5)
    assert not heartbeat.lost.is_set()


def test_a_lost_job_is_learned_of_and_left_alone(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    with database.write() as session:
        session.execute(update(Job).values(fence=9))
    heartbeat.report_stage("lift", "ours no more")
    assert heartbeat.lost.wait(2.5)
    assert get_job(database, claimed.job_id).stage == "fetch"
    assert len(events_of(database, claimed.job_id)) == 1
    heartbeat.stop()
    heartbeat.report_stage("lift", "still not")
    with pytest.raises(LeaseLost), database.write() as session:
        heartbeat.write_rest(session)


def test_a_flood_of_events_is_cut_off(
    database: Database, claimed: Claim, heartbeat: Heartbeat
) -> None:
    for number in range(600):
        heartbeat.report_event(Note("log", str(number)))
    heartbeat.stop()
    with database.write() as session:
        heartbeat.write_rest(session)
    events = events_of(database, claimed.job_id)
    assert 490 < len(events) < 510
    assert "too many" in events[-1].message


def test_a_write_is_repeated_until_the_database_is_back(database: Database) -> None:
    job_id = add_job(database)
    tries = []

    def write(session: Session) -> str:
        session.execute(update(Job).values(message="written"))
        tries.append(1)
        if len(tries) < 3:
            raise OperationalError("update", {}, Exception("database is locked"))
        return "done"

    assert persist(database, write, threading.Event(), job_id) == "done"
    assert len(tries) == 3
    assert get_job(database, job_id).message == "written"


def test_a_write_gives_up_only_when_told_to(database: Database) -> None:
    def write(session: Session) -> None:
        raise OperationalError("update", {}, Exception("database is locked"))

    stopping = threading.Event()
    threading.Timer(0.2, stopping.set).start()
    began = time.monotonic()
    with pytest.raises(GaveUp):
        persist(database, write, stopping, "job_x")
    assert time.monotonic() - began > 0.15


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
