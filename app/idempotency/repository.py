"""Forgetting answers that no request will be repeated for."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import delete, select

from app.db import Database, utc_now
from app.idempotency.tables import FirstAnswer

KEPT_S = 24 * 3600.0


def forget_answers(database: Database, at_once: int) -> int:
    """Remove up to `at_once` answers that were kept for a day; return how many."""
    old = FirstAnswer.created_at < utc_now() - timedelta(seconds=KEPT_S)
    with database.read() as session:
        keys = session.execute(
            select(FirstAnswer.project_id, FirstAnswer.key).where(old).limit(at_once)
        ).all()
    if keys:
        with database.write() as session:
            for project_id, key in keys:
                session.execute(
                    delete(FirstAnswer).where(
                        FirstAnswer.project_id == project_id, FirstAnswer.key == key, old
                    )
                )
    return len(keys)
