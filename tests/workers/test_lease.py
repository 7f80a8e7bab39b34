from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from app.db import Database, utc_now
from app.jobs.tables import Job
from tests.workers.rows import add_job, events_of, get_job, statuses_of
from workers import endings
from workers.failures import crashed, worker_lost
from workers.lease import Claim, LeaseLost, claim, look, renew


def take(database: Database, *queues: str) -> Claim | None:
    with database.write() as session:
        return claim(session, queues or ("cpu",), "test/1/2/3", 30)


def taken(database: Database) -> Claim:
    claimed = take(database)
    assert claimed is not None
    return claimed


def test_a_claim_takes_the_most_urgent_job_then_the_oldest(database: Database) -> None:
    old = add_job(database)
    urgent = add_job(database, priority=5)
    young = add_job(database)

    assert [taken(database).job_id for _ in range(3)] == [urgent, old, young]
    assert take(database) is None


def test_a_claim_keeps_to_its_queues(database: Database) -> None:
    add_job(database, queue="gpu")
    assert take(database, "cpu", "inspect") is None
    assert take(database, "cpu", "gpu") is not None


def test_a_claim_raises_fence_attempt_and_version_and_starts_the_lease(database: Database) -> None:
    job_id = add_job(database)
    claimed = taken(database)
    job = get_job(database, job_id)

    assert (job.status, job.fence, job.attempt, job.version) == ("running", 1, 1, 2)
    assert (claimed.fence, claimed.attempt) == (1, 1)
    assert job.owner == "test/1/2/3"
    assert job.started_at is not None
    assert job.lease_expires_at is not None
    assert 25 < (job.lease_expires_at - utc_now()).total_seconds() < 31
    assert statuses_of(database, job_id) == ["running"]


def test_a_job_whose_cancelling_was_asked_for_is_not_claimed(database: Database) -> None:
    add_job(database, cancel_requested_at=utc_now())
    assert take(database) is None


def test_twenty_claims_at_once_take_ten_jobs_once_each(database: Database) -> None:
    jobs = {add_job(database) for _ in range(10)}
    start = threading.Barrier(20)

    def race() -> Claim | None:
        start.wait()
        return take(database)

    with ThreadPoolExecutor(20) as pool:
        claims = [future.result() for future in [pool.submit(race) for _ in range(20)]]

    won = [claimed.job_id for claimed in claims if claimed is not None]
    assert sorted(won) == sorted(jobs)
    assert all(get_job(database, job_id).attempt == 1 for job_id in jobs)


def test_renewing_prolongs_the_lease_and_tells_of_a_cancel(database: Database) -> None:
    job_id = add_job(database)
    claimed = taken(database)
    before = get_job(database, job_id)
    with database.write() as session:
        assert renew(session, job_id, claimed.fence, 90) is None
    after = get_job(database, job_id)
    assert after.lease_expires_at is not None
    assert before.lease_expires_at is not None
    assert after.lease_expires_at > before.lease_expires_at
    assert after.version == before.version, "a client sees no change, so the ETag stays"

    with database.write() as session:
        job = session.get(Job, job_id)
        assert job is not None
        job.cancel_requested_at = utc_now()
    with database.write() as session:
        assert renew(session, job_id, claimed.fence, 90, progress=0.5) is not None
    with database.read() as session:
        assert look(session, job_id, claimed.fence) is not None
    assert get_job(database, job_id).version == before.version + 1


def test_every_write_under_an_old_fence_is_refused_and_changes_nothing(database: Database) -> None:
    job_id = add_job(database)
    old = taken(database)
    with database.write() as session:
        endings.give_back(session, job_id, old.fence, "test")
    new = taken(database)
    assert new.fence == old.fence + 1
    before = get_job(database, job_id)
    noted = len(events_of(database, job_id))

    writes = (
        lambda session: renew(session, job_id, old.fence, 30, progress=0.9),
        lambda session: look(session, job_id, old.fence),
        lambda session: endings.succeed(session, job_id, old.fence, {"a": 1}, []),
        lambda session: endings.fail(session, job_id, old.fence, crashed(-11, 1)),
        lambda session: endings.cancel(session, job_id, old.fence),
        lambda session: endings.give_back(session, job_id, old.fence, "x"),
    )
    for write in writes:
        with pytest.raises(LeaseLost), database.write() as session:
            write(session)

    after = get_job(database, job_id)
    assert (after.status, after.version, after.progress) == ("running", before.version, 0.0)
    assert after.result is None
    assert len(events_of(database, job_id)) == noted


def test_a_job_ends_only_once(database: Database) -> None:
    job_id = add_job(database)
    claimed = taken(database)
    with database.write() as session:
        assert endings.succeed(session, job_id, claimed.fence, {"ok": 1}, []) == "succeeded"
    with pytest.raises(LeaseLost), database.write() as session:
        endings.fail(session, job_id, claimed.fence, worker_lost(3))
    job = get_job(database, job_id)
    assert (job.status, job.progress, job.result) == ("succeeded", 1.0, {"ok": 1})
    assert job.finished_at is not None
    assert job.owner is None
    assert statuses_of(database, job_id) == ["running", "succeeded"]


def test_an_accepted_cancel_wins_over_every_other_ending(database: Database) -> None:
    for end in (
        lambda session, job_id: endings.succeed(session, job_id, 1, {"ok": 1}, []),
        lambda session, job_id: endings.fail(session, job_id, 1, worker_lost(3)),
        lambda session, job_id: endings.give_back(session, job_id, 1, "x"),
        lambda session, job_id: endings.try_again(
            session, job_id, 1, reason="x", max_attempts=3, failure=worker_lost(3)
        ),
    ):
        job_id = add_job(database)
        taken(database)
        with database.write() as session:
            job = session.get(Job, job_id)
            assert job is not None
            job.cancel_requested_at = utc_now()
        with database.write() as session:
            assert end(session, job_id) == "cancelled"
        assert get_job(database, job_id).status == "cancelled"
        assert get_job(database, job_id).result is None


def test_a_job_is_tried_again_until_max_attempts_and_then_fails(database: Database) -> None:
    job_id = add_job(database)
    ended = []
    for _ in range(3):
        claimed = taken(database)
        with database.write() as session:
            ended.append(
                endings.try_again(
                    session, job_id, claimed.fence, reason="its process ended",
                    max_attempts=3, failure=crashed(-9, claimed.attempt).at("calibrate"),
                )
            )  # fmt: skip
    assert ended == ["queued", "queued", "failed"]
    job = get_job(database, job_id)
    assert job.error is not None
    assert job.error["code"] == "model_crashed"
    assert "SIGKILL" in job.error["message"]
    assert (job.error["stage"], job.stage, job.attempt) == ("calibrate", "calibrate", 3)
    assert take(database) is None


def test_giving_back_does_not_count_the_attempt(database: Database) -> None:
    job_id = add_job(database)
    started_at = None
    for fence in range(1, 6):
        claimed = taken(database)
        assert (claimed.attempt, claimed.fence) == (1, fence)
        started_at = started_at or get_job(database, job_id).started_at
        with database.write() as session:
            endings.give_back(session, job_id, claimed.fence, "the worker was stopped")
    job = get_job(database, job_id)
    assert (job.status, job.attempt, job.owner, job.stage) == ("queued", 0, None, None)
    assert job.started_at == started_at, "the first start counts"
