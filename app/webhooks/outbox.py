"""The outbox: what is to be sent, put in by whoever ends a job, taken out by senders.

Tries follow Standard Webhooks: at once, then later and later for a day.
"""

from __future__ import annotations

import json
import random
from datetime import datetime, timedelta

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from app.db import utc_now
from app.ids import new_id
from app.jobs.tables import Job
from app.jobs.views import show_job
from app.webhooks.tables import WebhookDelivery

DELAYS_S = (5, 5 * 60, 30 * 60, 2 * 3600, 5 * 3600, 8 * 3600, 8 * 3600)
"""Between tries: the last is some 24 hours after the first."""
_ERROR_LENGTH = 300


def announce_end(session: Session, job_id: str) -> None:
    """Put the job's end into the outbox, in the same transaction, if its submitter wants it."""
    spec = session.scalar(select(Job.spec).where(Job.id == job_id, Job.kind == "job"))
    webhook = (spec or {}).get("webhook")
    if webhook is None:
        return
    job = session.get_one(Job, job_id, populate_existing=True)
    if job.status not in webhook["events"]:
        return
    now = utc_now()
    kind = f"job.{job.status}"
    body = {
        "type": kind,
        "timestamp": now.isoformat().replace("+00:00", "Z"),
        "data": json.loads(show_job(job).model_dump_json()),
    }
    session.add(
        WebhookDelivery(
            id=new_id("msg"),
            project_id=job.project_id,
            job_id=job.id,
            type=kind,
            url=webhook["url"],
            body=json.dumps(body),
            next_attempt_at=now,
            created_at=now,
        )
    )


def take_due(session: Session, now: datetime, hold_s: float, at_once: int) -> list[WebhookDelivery]:
    """Return deliveries whose time has come; nobody else gets them for `hold_s` seconds."""
    due = (WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= now)
    ids = session.scalars(
        select(WebhookDelivery.id)
        .where(*due)
        .order_by(WebhookDelivery.next_attempt_at)
        .limit(at_once)
        .with_for_update(skip_locked=True)
    ).all()
    if not ids:
        return []
    return list(
        session.scalars(
            update(WebhookDelivery)
            .where(WebhookDelivery.id.in_(ids), *due)
            .values(
                next_attempt_at=now + timedelta(seconds=hold_s),
                attempts=WebhookDelivery.attempts + 1,
            )
            .returning(WebhookDelivery)
            .execution_options(synchronize_session=False, populate_existing=True)
        )
    )


def has_due(session: Session, now: datetime) -> bool:
    """Return whether some delivery's time has come."""
    return (
        session.scalar(
            select(WebhookDelivery.id)
            .where(WebhookDelivery.status == "pending", WebhookDelivery.next_attempt_at <= now)
            .limit(1)
        )
        is not None
    )


def note_delivered(session: Session, delivery: WebhookDelivery, status: int) -> None:
    """Note that the receiver has taken it."""
    _note(
        session, delivery, status="delivered", response_status=status, error=None,
        delivered_at=utc_now(),
    )  # fmt: skip


def note_failed(
    session: Session, delivery: WebhookDelivery, error: str, status: int | None, *, final: bool
) -> str:
    """Note that a try failed; return whether the delivery is now `pending` again, or `failed`."""
    tries_left = delivery.attempts <= len(DELAYS_S) and not final
    values = {"response_status": status, "error": error[:_ERROR_LENGTH]}
    if not tries_left:
        _note(session, delivery, status="failed", **values)
        return "failed"
    delay_s = DELAYS_S[delivery.attempts - 1] * random.uniform(0.9, 1.1)
    _note(session, delivery, next_attempt_at=utc_now() + timedelta(seconds=delay_s), **values)
    return "pending"


def _note(session: Session, delivery: WebhookDelivery, **values: object) -> None:
    session.execute(
        update(WebhookDelivery)
        # whoever took over after our time has the say
        .where(WebhookDelivery.id == delivery.id, WebhookDelivery.attempts == delivery.attempts)
        .values(**values)
        .execution_options(synchronize_session=False)
    )
