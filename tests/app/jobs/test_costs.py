"""What is asked of jobs costs the same however many there are: counted in steps of SQLite."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import event
from sqlalchemy.orm import Session

from app.db import Database, utc_now
from app.jobs import repository
from app.jobs.repository import JobFilter
from app.jobs.tables import Job
from app.metrics.tally import tally_jobs
from app.projects.retention import remove_expired
from app.projects.tables import Project
from app.settings import Settings
from app.storage import open_store
from benchmarks.rows import add_jobs
from tests.workers.rows import PROJECT_ID, add_job, get_job
from workers.lease import claim
from workers.sweeper import Sweeper

FEW, MANY = 150, 1500
_STEP = 10


class Steps:
    """A database that counts what its virtual machine does."""

    def __init__(self, settings: Settings) -> None:
        self.database = Database(settings)
        self._steps = 0

        @event.listens_for(self.database.engine, "connect")
        def _count(connection: Any, _record: Any) -> None:
            connection.set_progress_handler(self._step, _STEP)

    def _step(self) -> None:
        self._steps += 1

    def of(self, call: Callable[[], Any]) -> int:
        before = self._steps
        call()
        return (self._steps - before) * _STEP

    def reading(self, ask: Callable[[Session], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with self.database.read() as session:
                return ask(session)

        return call

    def writing(self, ask: Callable[[Session], Any]) -> Callable[[], Any]:
        def call() -> Any:
            with self.database.write() as session:
                return ask(session)

        return call


@pytest.fixture
def steps(settings: Settings) -> Iterator[Steps]:
    steps = Steps(settings)
    yield steps
    steps.database.close()


def asked(steps: Steps, settings: Settings) -> dict[str, Callable[[], Any]]:
    """Return what the API and the workers ask, by name."""
    database, reading, writing = steps.database, steps.reading, steps.writing
    store = open_store(settings.storage_url)
    last = add_job(database)
    sweepers = {
        queues: Sweeper(
            settings, database, store, queues=queues, slots=1, running=frozenset,
            machine=lambda: {},
        )
        for queues in (("cpu",), ("cpu", "gpu"))
    }  # fmt: skip
    lists = {
        "all": JobFilter(),
        "status": JobFilter(status=("queued",)),
        "method": JobFilter(method="distill"),
        "created after": JobFilter(created_after=utc_now() + timedelta(hours=1)),
        "label": JobFilter(label=("row", "copy")),
        "no such label": JobFilter(label=("row", "none")),
    }
    ways: dict[str, Callable[[], Any]] = {
        f"list by {name}": reading(
            lambda session, wanted=wanted: repository.list_jobs(  # type: ignore[misc]
                session, PROJECT_ID, wanted, 20, None
            )
        )
        for name, wanted in lists.items()
    }
    job = get_job(database, last)
    one, several = sweepers.values()
    return ways | {
        "place in the queue": reading(lambda s: repository.find_queue_position(s, job)),
        "length of the queue": reading(lambda s: repository.count_waiting(s, "cpu")),
        "claim": writing(lambda s: claim(s, ("cpu",), "w", 30)),
        "claim of several queues": writing(lambda s: claim(s, ("gpu", "cpu"), "w", 30)),
        "cancel": writing(lambda s: repository.cancel_job(s, PROJECT_ID, last)),
        "tally": lambda: tally_jobs(database, 5),
        "expire": lambda: remove_expired(database, store, 5),
        "send again": one.send_again,
        "send again to several queues": several.send_again,
        "release the dead": one.release_dead,
        "forget preflights": one.forget_preflights,
    }


def test_nothing_that_is_asked_of_jobs_grows_with_them(
    steps: Steps, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "COUNTED_MAX", 50)
    like = get_job(steps.database, add_job(steps.database))
    with steps.database.write() as session:
        session.get_one(Project, PROJECT_ID).expires_after_s = 3600
    costs = []
    sent_at = utc_now() - timedelta(minutes=1)
    for more in (FEW, MANY):
        for status in ("queued", "succeeded"):
            add_jobs(steps.database, like, more, status, message_sent_at=sent_at)
        costs.append({name: steps.of(ask) for name, ask in asked(steps, settings).items()})
    few, many = costs
    grown = {name: (few[name], many[name]) for name in few if many[name] > 1.5 * few[name] + 500}
    assert grown == {}


def test_a_place_far_back_is_told_as_the_last_that_is_counted(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(repository, "COUNTED_MAX", 4)
    ids = [add_job(steps.database) for _ in range(6)]

    def place(job_id: str) -> int | None:
        job = get_job(steps.database, job_id)
        with steps.database.read() as session:
            return repository.find_queue_position(session, job)

    assert [place(each) for each in ids] == [1, 2, 3, 4, 4, 4]
    urgent = add_job(steps.database, priority=1)
    assert [place(each) for each in (urgent, *ids)] == [1, 2, 3, 4, 4, 4, 4]
    with steps.database.read() as session:
        assert repository.count_waiting(session, "cpu") == 4
        assert repository.count_waiting(session, "gpu") == 0


def test_the_more_urgent_of_two_queues_goes_first_and_an_empty_one_hides_nothing(
    steps: Steps,
) -> None:
    plain = add_job(steps.database)
    older = add_job(steps.database, queue="gpu", priority=5)
    newer = add_job(steps.database, priority=5)

    def take() -> str | None:
        with steps.database.write() as session:
            claimed = claim(session, ("cpu", "gpu", "inspect"), "w", 30)
            return None if claimed is None else claimed.job_id

    assert [take() for _ in range(4)] == [older, newer, plain, None]


def test_a_copy_is_a_row_like_any_other(steps: Steps) -> None:
    like: Job = get_job(steps.database, add_job(steps.database))
    made = add_jobs(steps.database, like, 3, "failed")
    with steps.database.read() as session:
        jobs = repository.list_jobs(session, PROJECT_ID, JobFilter(), 9, None)
        assert [job.id for job in jobs] == [*reversed(made), like.id]
        assert jobs[0].finished_at is not None
        assert repository.list_events(session, made[0], 9, 0)[0].message == "failed"
