"""Counts finished jobs, each once; done by the sweepers of all workers, and by who deletes one.

Not in the transaction that ends a job: all ends would wait for each other at the same few rows,
and a worker that froze there would hold up all others.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from app.db import Database
from app.jobs.tables import Job, JobEvent
from app.metrics.jobs import Series, add_up, pack
from app.metrics.tables import Counter

_ENDED = (Job.tallied.is_(False), Job.finished_at.is_not(None))
"""Said as by the index that holds just these rows."""


def tally_jobs(database: Database, at_once: int) -> int:
    """Count up to `at_once` jobs that have ended; return how many."""
    with database.read() as session:
        job_ids = session.scalars(select(Job.id).where(*_ENDED).limit(at_once)).all()
    if not job_ids:
        return 0
    with database.write() as session:
        return tally(session, job_ids)


def tally(session: Session, job_ids: Sequence[str]) -> int:
    """Count those of the jobs that have ended and are not counted yet; return how many."""
    jobs = session.execute(
        update(Job)
        .where(Job.id.in_(job_ids), *_ENDED)  # another sweeper may have been quicker
        .values(tallied=True)
        .returning(
            Job.id, Job.kind, Job.method, Job.status, Job.error, Job.created_at,
            Job.started_at, Job.finished_at, Job.peak_memory_bytes,
        )
        .execution_options(synchronize_session=False)
    ).all()  # fmt: skip
    if jobs:
        _add(session, add_up(jobs, _read_stages(session, [job.id for job in jobs])))
    return len(jobs)


def _read_stages(
    session: Session, job_ids: Sequence[str]
) -> dict[str, list[tuple[datetime, str | None]]]:
    stages: dict[str, list[tuple[datetime, str | None]]] = defaultdict(list)
    rows = session.execute(
        select(JobEvent.job_id, JobEvent.created_at, JobEvent.data)
        .where(JobEvent.job_id.in_(job_ids), JobEvent.type.in_(("stage", "status")))
        .order_by(JobEvent.id)
    )
    for job_id, at, data in rows:
        stages[job_id].append((at, (data or {}).get("stage")))
    return stages


def _add(session: Session, total: Mapping[Series, float]) -> None:
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    insert = (sqlite_insert if is_sqlite else postgresql_insert)(Counter)
    rows = [
        {"name": name, "labels": pack(labels), "value": value}
        # always in the same order: two sweepers that locked them crosswise would be a deadlock
        for (name, labels), value in sorted(total.items())
    ]
    if rows:
        session.execute(
            insert.values(rows).on_conflict_do_update(
                index_elements=[Counter.name, Counter.labels],
                set_={"value": Counter.value + insert.excluded.value},
            )
        )
