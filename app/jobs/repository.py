"""Queries on jobs, from the API's side: insert, look, list, cancel, remove."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import CursorResult, Integer, Select, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import InstrumentedAttribute, Session

from app.audit.repository import record
from app.db import utc_now
from app.errors import Conflict, NotFound
from app.fields import is_id
from app.ids import lowest_id
from app.jobs.tables import FINISHED, Artifact, Job, JobDataset, JobEvent, JobLabel
from app.metrics.tally import tally
from app.webhooks.outbox import announce_end
from app.webhooks.tables import WebhookDelivery

COUNTED_MAX = 1000
"""So far is counted who waits; counting all of a long queue would slow every look at a job."""
_CLOCK_SLACK = timedelta(minutes=5)


def _count_ahead() -> Select[int]:
    # the head of the queue in its own order, from an index that holds no other jobs
    head = (
        select(Job.id, Job.priority)
        .where(Job.status == "queued", Job.queue == bindparam("queue"))
        .order_by(Job.priority.desc(), Job.id)
        .limit(bindparam("at_most", type_=Integer))
        .subquery()
    )
    priority = bindparam("priority", type_=Integer)
    is_ahead = or_(
        head.c.priority > priority,
        (head.c.priority == priority) & (head.c.id < bindparam("id")),
    )
    return select(func.count()).select_from(head).where(is_ahead)


# made once: making them takes longer than asking them
_AHEAD = _count_ahead()
_GLANCE = select(Job.id, Job.version, Job.status, Job.queue, Job.priority).where(
    Job.id == bindparam("id"), Job.project_id == bindparam("project_id"), Job.kind == "job"
)


@dataclass(frozen=True, kw_only=True)
class JobFilter:
    """Which jobs a list shows."""

    status: Sequence[str] = ()
    method: str | None = None
    created_after: datetime | None = None
    label: tuple[str, str] | None = None


def insert_job(session: Session, job: Job, datasets: Mapping[str, str]) -> None:
    """Insert a queued job, the datasets it reads by role, its labels and its first event."""
    session.add(job)
    session.flush()  # the rows below refer to it
    for role, dataset_id in datasets.items():
        session.add(JobDataset(job_id=job.id, role=role, dataset_id=dataset_id))
    for key, value in job.labels.items():
        session.add(JobLabel(job_id=job.id, key=key, value=value, project_id=job.project_id))
    append_event(session, job.id, "status", "queued", {"status": "queued"})


def append_event(
    session: Session,
    job_id: str,
    type: str,
    message: str,
    data: dict[str, Any] | None = None,
    level: str = "info",
) -> None:
    """Note what happened to a job."""
    session.add(
        JobEvent(
            job_id=job_id, created_at=utc_now(), level=level, type=type, message=message, data=data
        )
    )


def get_job(session: Session, project_id: str, job_id: str, kind: str = "job") -> Job:
    """Return the project's job.

    Raises:
        NotFound: also for another project's.
    """
    job = session.get(Job, job_id) if is_id(job_id, "job") else None
    if job is None or job.project_id != project_id or job.kind != kind:
        raise NotFound(f"There is no such {kind}.")
    return job


class Glance(NamedTuple):
    """What tells whether a job has changed, and whether it will."""

    id: str
    version: int
    status: str
    queue: str
    priority: int


def glance_at_job(session: Session, project_id: str, job_id: str) -> Glance:
    """Return the little of a job that most who ask for it again need.

    Raises:
        NotFound: also for another project's.
    """
    asked = {"id": job_id, "project_id": project_id}
    found = session.execute(_GLANCE, asked).one_or_none() if is_id(job_id, "job") else None
    if found is None:
        raise NotFound("There is no such job.")
    return Glance(*found)


def list_jobs(
    session: Session, project_id: str, wanted: JobFilter, limit: int, after: str | None
) -> list[Job]:
    """Return up to `limit` jobs, newest first."""
    # first the ids alone: an index holds all that this takes, and PostgreSQL sees that it does
    query = select(Job.id).where(Job.project_id == project_id, Job.kind == "job")
    if wanted.status:
        query = query.where(Job.status.in_(wanted.status))
    if wanted.method is not None:
        query = query.where(Job.method == wanted.method)
    if wanted.created_after is not None:
        query = query.where(
            Job.created_at > wanted.created_after,
            # ids sort by time: older ones need no look
            Job.id >= lowest_id("job", wanted.created_after - _CLOCK_SLACK),
        )
    newest: InstrumentedAttribute[str] = Job.id
    if wanted.label is not None:
        key, value = wanted.label
        newest = JobLabel.job_id
        query = query.join(JobLabel, JobLabel.job_id == Job.id).where(
            JobLabel.project_id == project_id, JobLabel.key == key, JobLabel.value == value
        )
    if after is not None:
        query = query.where(newest < after)
    ids = session.scalars(query.order_by(newest.desc()).limit(limit)).all()
    return list(session.scalars(select(Job).where(Job.id.in_(ids)).order_by(Job.id.desc())))


def find_queue_position(session: Session, job: Job | Glance) -> int | None:
    """Return 1 for the job that is next in its queue; None once it has left the queue.

    `COUNTED_MAX` stands for itself and all that is more.
    """
    if job.status != "queued":
        return None
    ahead = session.scalar(
        _AHEAD,
        {
            "queue": job.queue,
            "priority": job.priority,
            "id": job.id,
            "at_most": COUNTED_MAX - 1,
        },
    )
    return (ahead or 0) + 1


def count_waiting(session: Session, queue: str) -> int:
    """Return how many jobs wait in a queue; `COUNTED_MAX` stands for all that is more."""
    waiting = select(Job.id).where(Job.status == "queued", Job.queue == queue)
    counted = select(func.count()).select_from(waiting.limit(COUNTED_MAX).subquery())
    return session.scalar(counted) or 0


def count_unfinished(session: Session) -> dict[str, dict[str, int]]:
    """Return queue to `{queued, running}`."""
    counts = {name: {"queued": 0, "running": 0} for name in ("cpu", "gpu", "inspect")}
    rows = session.execute(
        select(Job.queue, Job.status, func.count())
        .where(Job.status.in_(("queued", "running")))
        .group_by(Job.queue, Job.status)
    )
    for queue, status, count in rows:
        counts.setdefault(queue, {"queued": 0, "running": 0})[status] = count
    return counts


def cancel_job(session: Session, project_id: str, job_id: str) -> Job:
    """Cancel a queued job at once; ask the worker to stop a running one. Asking twice is fine.

    Raises:
        Conflict: `already_finished`.
    """
    get_job(session, project_id, job_id)
    now = utc_now()
    at_once = session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status == "queued")
        .values(
            status="cancelled",
            cancel_requested_at=now,
            finished_at=now,
            message="cancelled",
            version=Job.version + 1,
        )
        .execution_options(synchronize_session=False)
    )
    assert isinstance(at_once, CursorResult)
    if at_once.rowcount == 1:
        append_event(session, job_id, "status", "cancelled", {"status": "cancelled"})
        announce_end(session, job_id)
    else:
        session.execute(
            update(Job)
            .where(Job.id == job_id, Job.status == "running", Job.cancel_requested_at.is_(None))
            .values(cancel_requested_at=now, version=Job.version + 1)
            .execution_options(synchronize_session=False)
        )
    session.expire_all()
    job = get_job(session, project_id, job_id)
    if at_once.rowcount == 0 and job.status in FINISHED:
        raise Conflict(f"The job is over already: {job.status}.", code="already_finished")
    record(session, "job.cancel", project_id, job_id)
    return job


def remove_job(session: Session, project_id: str, job_id: str) -> None:
    """Remove a finished job with its events and artifacts; the caller removes the files.

    Raises:
        Conflict: `in_use` while it is queued or running.
    """
    job = get_job(session, project_id, job_id)
    if job.status not in FINISHED:
        raise Conflict("The job has not finished; cancel it first.", code="in_use")
    delete_jobs(session, [job_id])
    record(session, "job.delete", project_id, job_id)


def delete_jobs(session: Session, job_ids: Sequence[str]) -> None:
    """Delete the rows of finished jobs and of all that belongs to them."""
    tally(session, job_ids)  # who deletes a job at once would else take it out of the figures
    for table in (JobEvent, JobLabel, JobDataset, Artifact, WebhookDelivery):
        session.execute(delete(table).where(table.job_id.in_(job_ids)))
    session.execute(delete(Job).where(Job.id.in_(job_ids)))


def list_events(session: Session, job_id: str, limit: int, after: int) -> list[JobEvent]:
    """Return up to `limit` events with ids over `after`, oldest first."""
    query = select(JobEvent).where(JobEvent.job_id == job_id, JobEvent.id > after)
    return list(session.scalars(query.order_by(JobEvent.id).limit(limit)))


def list_artifacts(session: Session, job_id: str, limit: int, after: str | None) -> list[Artifact]:
    """Return up to `limit` artifacts of a job, newest first."""
    query = select(Artifact).where(Artifact.job_id == job_id)
    if after is not None:
        query = query.where(Artifact.id < after)
    return list(session.scalars(query.order_by(Artifact.id.desc()).limit(limit)))


def get_artifact(session: Session, project_id: str, artifact_id: str) -> Artifact:
    """Return the project's artifact.

    Raises:
        NotFound: also for another project's.
    """
    artifact = session.get(Artifact, artifact_id) if is_id(artifact_id, "art") else None
    if artifact is None or artifact.project_id != project_id:
        raise NotFound("There is no such artifact.")
    return artifact
