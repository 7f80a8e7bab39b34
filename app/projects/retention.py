"""Removes what projects keep no longer: finished jobs, then models and datasets that none uses."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, or_, select
from sqlalchemy.orm import Session

from app.audit.repository import record
from app.datasets.tables import Dataset
from app.db import Database, utc_now
from app.jobs.repository import delete_jobs
from app.jobs.tables import FINISHED, Job, JobDataset
from app.models.tables import Model
from app.projects.tables import Project
from app.storage import BlobStore
from app.storage_repository import release_content


def remove_expired(database: Database, store: BlobStore, at_once: int) -> int:
    """Remove up to `at_once` of each kind in each project; return how many in all."""
    with database.read() as session:
        ages = {
            project_id: timedelta(seconds=age_s)
            for project_id, age_s in session.execute(select(Project.id, Project.expires_after_s))
            if age_s is not None
        }
    removed = 0
    for project_id, age in ages.items():
        before = utc_now() - age
        removed += _remove_jobs(database, store, project_id, before, at_once)
        for table, used in ((Model, _has_jobs()), (Dataset, _is_read())):
            removed += _remove_files(database, store, table, used, project_id, before, at_once)
    return removed


def _remove_jobs(
    database: Database, store: BlobStore, project_id: str, before: datetime, at_once: int
) -> int:
    old = (
        select(Job.id)
        .where(Job.project_id == project_id, Job.kind == "job", Job.status.in_(FINISHED))
        .where(Job.finished_at < before)
        .limit(at_once)
    )
    with database.read() as session:
        if not session.scalars(old).all():
            return 0
    with database.write() as session:
        job_ids = session.scalars(old.with_for_update(skip_locked=True)).all()
        for job_id in job_ids:
            record(session, "job.expire", project_id, job_id)
        delete_jobs(session, job_ids)
    for job_id in job_ids:
        store.delete_tree(f"jobs/{job_id}")
    return len(job_ids)


def _remove_files(
    database: Database,
    store: BlobStore,
    table: Any,
    used: ColumnElement[bool],
    project_id: str,
    before: datetime,
    at_once: int,
) -> int:
    old = (
        select(table)
        .where(table.project_id == project_id, table.created_at < before, ~used)
        .limit(at_once)
    )
    with database.read() as session:
        if not session.scalars(old).all():
            return 0
    contents = []
    with database.write() as session:
        # locked before it is looked at again: a submit that names it shares that lock
        for row in session.scalars(old.with_for_update(skip_locked=True, of=table)).all():
            if _is_used_now(session, table, row.id, used):
                continue
            session.delete(row)
            record(session, f"{table.__name__.lower()}.expire", project_id, row.id)
            contents.append(row.sha256)
    for sha256 in contents:
        release_content(database, store, sha256)
    return len(contents)


def _is_used_now(session: Session, table: Any, row_id: str, used: ColumnElement[bool]) -> bool:
    return session.scalar(select(table.id).where(table.id == row_id, used)) is not None


def _has_jobs() -> ColumnElement[bool]:
    # two questions: each has its index, and PostgreSQL would read all jobs for one with an OR
    return or_(
        select(Job.id).where(Job.model_id == Model.id).exists(),
        select(Job.id).where(Job.student_model_id == Model.id).exists(),
    )


def _is_read() -> ColumnElement[bool]:
    return select(JobDataset.job_id).where(JobDataset.dataset_id == Dataset.id).exists()
