"""Bytes and jobs of a project, counted where they are: in the database, by whoever adds one.

The project's row is locked while it is counted and until what was allowed is there, so the limits
hold however many processes answer requests at once.
"""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import Conflict
from app.projects import repository
from app.projects.tables import Project


def check_room(
    session: Session, project_id: str, size_bytes: int, *, with_uploads: bool = False
) -> None:
    """Check that the project may store so many bytes more.

    `with_uploads` counts unfinished uploads too: one that begins must find room beside them, one
    that becomes a model has had its room all the while.

    Raises:
        Conflict: `project_full`.
    """
    limit = _read_limit(session, project_id, "stored_bytes_max")
    if limit is None:
        return
    used = repository.count_stored_bytes(session, project_id)
    if with_uploads:
        used += repository.count_arriving_bytes(session, project_id)
    if used + size_bytes > limit:
        raise Conflict(
            f"The project may store {limit} bytes and has {used}; this would add {size_bytes}. "
            "Delete models, datasets, jobs or unfinished uploads, or ask an admin for more.",
            code="project_full",
        )


def check_jobs(session: Session, project_id: str, kind: str) -> None:
    """Check that the project may have one more unfinished job, and room for what it makes.

    Raises:
        Conflict: `too_many_jobs`, `project_full`.
    """
    limit = _read_limit(session, project_id, "unfinished_jobs_max")
    if limit is not None and repository.count_unfinished_jobs(session, project_id, kind) >= limit:
        raise Conflict(
            f"The project has {limit} unfinished jobs, and may have no more. Wait for some, or "
            "cancel them.",
            code="too_many_jobs",
        )
    if kind == "job":
        check_room(session, project_id, 1)


def _read_limit(session: Session, project_id: str, name: str) -> int | None:
    """Return a limit; if there is one, the project is locked by then."""
    column = getattr(Project, name)
    if session.scalar(select(column).where(Project.id == project_id)) is None:
        return None
    project = repository.lock_project(session, project_id)
    return None if project is None else getattr(project, name)
