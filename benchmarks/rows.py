"""Rows of jobs put straight into a database, as many as a service would take days to gather."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sqlalchemy import insert
from sqlalchemy.orm import Session

from app.db import Database, utc_now
from app.ids import new_id
from app.jobs.tables import Job, JobEvent, JobLabel
from app.projects.tables import Project

_AT_ONCE = 2000


def add_jobs(database: Database, like: Job, count: int, status: str, **values: Any) -> list[str]:
    """Insert copies of a job, each with its first event and a label; return their ids."""
    ids: list[str] = []
    while len(ids) < count:
        batch = list(_copies(like, min(_AT_ONCE, count - len(ids)), status, values))
        with database.write() as session:
            _insert(session, batch)
        ids += [row["id"] for row in batch]
    return ids


def _copies(like: Job, count: int, status: str, values: dict[str, Any]) -> Iterator[dict[str, Any]]:
    now = utc_now()
    is_over = status in ("succeeded", "failed", "cancelled")
    for _ in range(count):
        row = {column.key: getattr(like, column.key) for column in Job.__table__.columns}
        yield row | {
            "id": new_id("job"),
            "status": status,
            "created_at": now,
            "message_sent_at": now,
            "finished_at": now if is_over else None,
            "tallied": is_over,
            "labels": {"row": "copy"},
            **values,
        }


def _insert(session: Session, rows: list[dict[str, Any]]) -> None:
    session.get_one(Project, rows[0]["project_id"])
    session.execute(insert(Job), rows)
    session.execute(
        insert(JobLabel),
        [
            {"job_id": row["id"], "key": "row", "value": "copy", "project_id": row["project_id"]}
            for row in rows
        ],
    )
    session.execute(
        insert(JobEvent),
        [
            {
                "job_id": row["id"], "created_at": row["created_at"], "level": "info",
                "type": "status", "message": row["status"], "data": {"status": row["status"]},
            }
            for row in rows
        ],
    )  # fmt: skip
