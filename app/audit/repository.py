"""Writing, listing and forgetting what the audit log holds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from app.audit.actor import actor_var
from app.audit.tables import AuditEvent
from app.db import Database, utc_now
from app.ids import new_id


def record(session: Session, action: str, project_id: str, subject_id: str, **details: Any) -> None:
    """Note a change, in the transaction that makes it: both are there, or neither."""
    actor = actor_var.get()
    session.add(
        AuditEvent(
            id=new_id("aud"),
            created_at=utc_now(),
            project_id=project_id,
            key_id=None if actor is None else actor.key_id,
            action=action,
            subject_id=subject_id,
            request_id=None if actor is None else actor.request_id,
            details=details or None,
        )
    )


def list_audit_events(
    session: Session,
    limit: int,
    after: str | None,
    *,
    project_id: str | None = None,
    key_id: str | None = None,
) -> list[AuditEvent]:
    """Return up to `limit` events, newest first."""
    query = select(AuditEvent).order_by(AuditEvent.id.desc()).limit(limit)
    if project_id is not None:
        query = query.where(AuditEvent.project_id == project_id)
    if key_id is not None:
        query = query.where(AuditEvent.key_id == key_id)
    if after is not None:
        query = query.where(AuditEvent.id < after)
    return list(session.scalars(query))


def forget_old(database: Database, kept_days: float, at_once: int) -> int:
    """Remove up to `at_once` events older than `kept_days`; return how many."""
    before = utc_now() - timedelta(days=kept_days)
    old = select(AuditEvent.id).where(AuditEvent.created_at < before).limit(at_once)
    with database.read() as session:
        ids = session.scalars(old).all()
    if ids:
        with database.write() as session:
            session.execute(delete(AuditEvent).where(AuditEvent.id.in_(ids)))
    return len(ids)
