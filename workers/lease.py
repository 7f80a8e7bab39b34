"""Claiming jobs, and the fence that makes every later write of a lost owner void."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import CursorResult, Select, func, select, update
from sqlalchemy.orm import Session

from app.db import utc_now
from app.jobs.tables import Job, JobEvent


class LeaseLost(Exception):
    """Another worker has the job, or it has ended: whatever we know of it is void."""


@dataclass(frozen=True)
class Claim:
    """One attempt at one job; `fence` is its right to write."""

    job_id: str
    project_id: str
    kind: str
    method: str
    queue: str
    spec: Mapping[str, Any]
    model_id: str
    timeout_s: int
    fence: int
    attempt: int
    request_id: str | None = None
    traceparent: str | None = None

    @property
    def name(self) -> str:
        """Name of the attempt's folder."""
        return f"{self.job_id}-{self.fence}"


def claim(session: Session, queues: Sequence[str], owner: str, lease_s: float) -> Claim | None:
    """Take the next job of `queues`, the most urgent first, then the oldest; None if none waits.

    Dead leases are not claimed here: the sweeper puts such jobs back into the queue, so that one
    place decides when an owner is dead and how often a job is tried.
    """
    for queue in _by_urgency(session, queues):
        claimed = _claim_from(session, queue, owner, lease_s)
        if claimed is not None:
            return claimed
    return None


def list_late(
    session: Session, queues: Sequence[str], sent_before: datetime, limit: int
) -> list[str]:
    """Return up to `limit` jobs whose message went out before, in the order of claims."""
    waiting = [
        (-priority, job_id)
        for queue in queues
        for job_id, priority in session.execute(
            _next_queued(queue).where(Job.message_sent_at < sent_before).limit(limit)
        )
    ]
    return [job_id for _, job_id in sorted(waiting)[:limit]]


def _next_queued(queue: str) -> Select[str, int]:
    """Return the query for id and priority of the jobs that wait in a queue, the next one first.

    One queue at a time: over several, the database would sort them all to find the first.
    """
    return (
        select(Job.id, Job.priority)
        .where(Job.status == "queued", Job.queue == queue, Job.cancel_requested_at.is_(None))
        .order_by(Job.priority.desc(), Job.id)
    )


def _by_urgency(session: Session, queues: Sequence[str]) -> list[str]:
    if len(queues) == 1:
        return list(queues)
    heads = {queue: session.execute(_next_queued(queue).limit(1)).one_or_none() for queue in queues}
    waiting = [(-head.priority, head.id, queue) for queue, head in heads.items() if head]
    return [queue for _, _, queue in sorted(waiting)]


def _claim_from(session: Session, queue: str, owner: str, lease_s: float) -> Claim | None:
    now = database_now(session)
    next_id = (
        _next_queued(queue)
        .with_only_columns(Job.id)
        .limit(1)
        .with_for_update(skip_locked=True)  # PostgreSQL; on SQLite the whole write is exclusive
        .scalar_subquery()
    )
    row = session.execute(
        update(Job)
        .where(Job.id == next_id, Job.status == "queued")
        .values(
            status="running",
            stage="fetch",
            progress=0.0,
            message="starting",
            eta_seconds=None,
            owner=owner,
            lease_expires_at=now + timedelta(seconds=lease_s),
            started_at=func.coalesce(Job.started_at, now),
            attempt=Job.attempt + 1,
            fence=Job.fence + 1,
            version=Job.version + 1,
        )
        .returning(
            Job.id, Job.project_id, Job.kind, Job.method, Job.queue, Job.spec, Job.model_id,
            Job.timeout_s, Job.fence, Job.attempt, Job.request_id, Job.traceparent,
        )
        .execution_options(synchronize_session=False)
    ).one_or_none()  # fmt: skip
    if row is None:
        return None
    claimed = Claim(*row)
    add_event(
        session, claimed.job_id, "status", "running",
        {"status": "running", "attempt": claimed.attempt},
    )  # fmt: skip
    return claimed


def renew(
    session: Session, job_id: str, fence: int, lease_s: float, **values: Any
) -> datetime | None:
    """Prolong the lease, and write `values` with it; return when cancelling was asked for.

    Raises:
        LeaseLost: the job is no longer ours.
    """
    if values:
        values["version"] = Job.version + 1
    row = session.execute(
        _ours(job_id, fence)
        .values(lease_expires_at=database_now(session) + timedelta(seconds=lease_s), **values)
        .returning(Job.cancel_requested_at)
    ).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    cancel_requested_at: datetime | None = row[0]
    return cancel_requested_at


def look(session: Session, job_id: str, fence: int) -> datetime | None:
    """Return when cancelling was asked for, without writing.

    Raises:
        LeaseLost: the job is no longer ours.
    """
    row = session.execute(
        select(Job.cancel_requested_at).where(
            Job.id == job_id, Job.fence == fence, Job.status == "running"
        )
    ).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    cancel_requested_at: datetime | None = row[0]
    return cancel_requested_at


def write(session: Session, job_id: str, fence: int, **values: Any) -> None:
    """Write `values` to a running job if the fence still holds.

    Raises:
        LeaseLost: the job is no longer ours.
    """
    result = session.execute(_ours(job_id, fence).values(version=Job.version + 1, **values))
    assert isinstance(result, CursorResult)
    if result.rowcount != 1:
        raise LeaseLost(job_id)


def add_event(
    session: Session,
    job_id: str,
    type: str,
    message: str,
    data: Mapping[str, Any] | None = None,
    level: str = "info",
    at: datetime | None = None,
) -> None:
    """Note what happened to a job."""
    session.add(
        JobEvent(
            job_id=job_id,
            created_at=at or utc_now(),
            level=level,
            type=type,
            message=message,
            data=None if data is None else dict(data),
        )
    )


def database_now(session: Session) -> datetime:
    """Return the time by the one clock that all workers share."""
    if session.get_bind().dialect.name == "postgresql":
        now = session.scalar(select(func.clock_timestamp()))
        assert isinstance(now, datetime)
        return now
    return utc_now()  # SQLite: all workers are on one host


def _ours(job_id: str, fence: int) -> Any:
    return (
        update(Job)
        .where(Job.id == job_id, Job.fence == fence, Job.status == "running")
        .execution_options(synchronize_session=False)
    )
