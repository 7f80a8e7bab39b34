"""How an attempt at a job ends. Each function runs in one transaction and honours the fence.

A cancel that the API has accepted wins over every other ending.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import utc_now, wake
from app.jobs.tables import Artifact, Job
from app.queue import QueueName
from app.webhooks.outbox import announce_end
from workers.failures import Failure
from workers.lease import LeaseLost, add_event, write


@dataclass(frozen=True)
class Attempt:
    """What an ending needs to know of an attempt; read under a row lock."""

    job_id: str
    fence: int
    attempt: int
    queue: QueueName
    cancel_requested: bool


def lock_attempt(session: Session, job_id: str, fence: int) -> Attempt:
    """Lock the running job's row.

    Raises:
        LeaseLost: the job is no longer running under this fence.
    """
    row = session.execute(
        select(Job.attempt, Job.queue, Job.cancel_requested_at)
        .where(Job.id == job_id, Job.fence == fence, Job.status == "running")
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise LeaseLost(job_id)
    return Attempt(
        job_id, fence, row.attempt, cast(QueueName, row.queue),
        row.cancel_requested_at is not None,
    )  # fmt: skip


def succeed(
    session: Session, job_id: str, fence: int, result: Mapping[str, Any], files: Sequence[Artifact]
) -> str:
    """Store the result and its artifacts; return the status the job ended in."""
    attempt = lock_attempt(session, job_id, fence)
    if attempt.cancel_requested:
        return _cancel(session, attempt)
    session.add_all(files)
    return _end(session, attempt, "succeeded", progress=1.0, message="done", result=dict(result))


def fail(session: Session, job_id: str, fence: int, failure: Failure) -> str:
    """End the job as failed; return the status the job ended in."""
    attempt = lock_attempt(session, job_id, fence)
    if attempt.cancel_requested:
        return _cancel(session, attempt)
    return _fail(session, attempt, failure)


def cancel(session: Session, job_id: str, fence: int) -> str:
    """End the job as cancelled."""
    return _cancel(session, lock_attempt(session, job_id, fence))


def try_again(
    session: Session, job_id: str, fence: int, *, reason: str, max_attempts: int, failure: Failure
) -> str:
    """Put the job back into the queue, or fail it with `failure` after `max_attempts`."""
    attempt = lock_attempt(session, job_id, fence)
    if attempt.cancel_requested:
        return _cancel(session, attempt)
    if attempt.attempt >= max_attempts:
        return _fail(session, attempt, failure)
    return _requeue(session, attempt, reason, attempt.attempt, "warning")


def give_back(session: Session, job_id: str, fence: int, reason: str) -> str:
    """Put the job back into the queue as if this attempt had not been."""
    attempt = lock_attempt(session, job_id, fence)
    if attempt.cancel_requested:
        return _cancel(session, attempt)
    return _requeue(session, attempt, reason, attempt.attempt - 1, "info")


def _cancel(session: Session, attempt: Attempt) -> str:
    return _end(session, attempt, "cancelled", message="cancelled")


def _fail(session: Session, attempt: Attempt, failure: Failure) -> str:
    return _end(
        session, attempt, "failed", level="error",
        stage=failure.stage, message=failure.message, error=failure.to_dict(),
    )  # fmt: skip


def _requeue(session: Session, attempt: Attempt, reason: str, count: int, level: str) -> str:
    write(
        session,
        attempt.job_id,
        attempt.fence,
        status="queued",
        stage=None,
        progress=0.0,
        message=reason,
        eta_seconds=None,
        attempt=count,
        owner=None,
        lease_expires_at=None,
        message_sent_at=utc_now(),
    )
    add_event(
        session, attempt.job_id, "status", f"queued: {reason}",
        {"status": "queued", "attempt": count}, level,
    )  # fmt: skip
    wake(session, attempt.job_id, attempt.queue)
    return "queued"


def _end(
    session: Session, attempt: Attempt, status: str, *, level: str = "info", **values: Any
) -> str:
    write(
        session,
        attempt.job_id,
        attempt.fence,
        status=status,
        finished_at=utc_now(),
        eta_seconds=None,
        owner=None,
        lease_expires_at=None,
        **values,
    )
    error = values.get("error")
    add_event(
        session, attempt.job_id, "status", status if error is None else f"failed: {error['code']}",
        {"status": status, **({"error": error} if error else {})}, level,
    )  # fmt: skip
    announce_end(session, attempt.job_id)
    return status
