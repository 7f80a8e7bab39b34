"""Queries on projects, and on what they use."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.db import utc_now
from app.errors import Conflict
from app.ids import new_id
from app.jobs.tables import Artifact, Job
from app.models.tables import Model
from app.projects.tables import Project
from app.uploads.tables import PartialUpload


def create_project(session: Session, name: str, values: Mapping[str, Any] | None = None) -> Project:
    """Insert a project; `values` are columns beside its name.

    Raises:
        Conflict: `name_taken`.
    """
    project = Project(id=new_id("prj"), name=name, created_at=utc_now(), **(values or {}))
    if session.scalar(select(Project.id).where(Project.name == name)):
        raise Conflict(f"There is a project named {name!r} already.", code="name_taken")
    session.add(project)
    try:
        session.flush()
    except IntegrityError as error:  # two at once, on PostgreSQL
        raise Conflict("There is a project of that name already.", code="name_taken") from error
    return project


def list_projects(session: Session, limit: int, after: str | None = None) -> list[Project]:
    """Return up to `limit` projects, newest first."""
    query = select(Project).order_by(Project.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Project.id < after)
    return list(session.scalars(query))


def find_project(session: Session, id_or_name: str) -> Project | None:
    """Return the project with this id or name."""
    return session.scalar(
        select(Project).where((Project.id == id_or_name) | (Project.name == id_or_name))
    )


def lock_project(session: Session, project_id: str) -> Project | None:
    """Return the project, held until the commit: whoever counts what it has, counts alone.

    Rows that refer to it can be inserted meanwhile. (On SQLite a write is alone anyway.)
    """
    query = select(Project).where(Project.id == project_id)
    return session.scalar(query.with_for_update(key_share=True))


def count_stored_bytes(session: Session, project_id: str) -> int:
    """Return the bytes of the project's models, datasets and artifacts."""
    return sum(
        session.scalar(select(func.sum(table.size_bytes)).where(table.project_id == project_id))
        or 0
        for table in (Model, Dataset, Artifact)
    )


def count_arriving_bytes(session: Session, project_id: str) -> int:
    """Return the declared bytes of the project's unfinished uploads."""
    total = select(func.sum(PartialUpload.size_bytes)).where(PartialUpload.project_id == project_id)
    return session.scalar(total) or 0


def count_unfinished_jobs(session: Session, project_id: str, kind: str = "job") -> int:
    """Return how many jobs of the project are queued or running."""
    count = select(func.count(Job.id)).where(
        Job.project_id == project_id, Job.kind == kind, Job.status.in_(("queued", "running"))
    )
    return session.scalar(count) or 0
