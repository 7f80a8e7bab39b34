"""Rows that the API would have written: a project, a model, datasets, jobs."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from sqlalchemy import select

from app.datasets.tables import Dataset
from app.db import Database, utc_now, wake
from app.ids import new_id
from app.jobs.tables import Job, JobDataset, JobEvent
from app.models.tables import Model
from app.projects.tables import Project
from app.storage import BlobStore, content_key
from app.storage_tables import Blob

PROJECT_ID = "prj_test"


def add_project(database: Database) -> None:
    with database.write() as session:
        if session.get(Project, PROJECT_ID) is None:
            session.add(Project(id=PROJECT_ID, name="test", created_at=utc_now()))


def add_job(database: Database, *, message: bool = False, **values: Any) -> str:
    """Add a queued job; with `message`, wake a worker after the commit."""
    add_project(database)
    job_id = new_id("job")
    fields: dict[str, Any] = {
        "id": job_id,
        "project_id": PROJECT_ID,
        "kind": "job",
        "method": "ptq",
        "queue": "cpu",
        "status": "queued",
        "spec": {"method": "ptq"},
        "model_id": "mdl_none",
        "labels": {},
        "timeout_s": 600,
        "message_sent_at": utc_now(),
        "created_at": utc_now(),
    }
    datasets: dict[str, str] = values.pop("datasets", {})
    with database.write() as session:
        session.add(Job(**(fields | values)))
        session.flush()
        for role, dataset_id in datasets.items():
            session.add(JobDataset(job_id=job_id, role=role, dataset_id=dataset_id))
        if message:
            wake(session, job_id, values.get("queue", "cpu"))
    return job_id


def add_model(database: Database, store: BlobStore, path: Path) -> str:
    add_project(database)
    sha256 = _add_blob(database, store, path)
    model_id = new_id("mdl")
    with database.write() as session:
        session.add(
            Model(
                id=model_id, project_id=PROJECT_ID, name=path.name, status="ready",
                size_bytes=path.stat().st_size, sha256=sha256, inputs=None, arguments=[],
                operators={}, parameters=0, labels={}, created_at=utc_now(),
            )
        )  # fmt: skip
    return model_id


def add_dataset(database: Database, store: BlobStore, path: Path, samples: int) -> str:
    add_project(database)
    sha256 = _add_blob(database, store, path)
    dataset_id = new_id("dst")
    with database.write() as session:
        session.add(
            Dataset(
                id=dataset_id, project_id=PROJECT_ID, name=path.name, format=path.suffix[1:],
                size_bytes=path.stat().st_size, sha256=sha256, samples=samples, arrays=[],
                has_labels=True, labels={}, created_at=utc_now(),
            )
        )  # fmt: skip
    return dataset_id


def get_job(database: Database, job_id: str) -> Job:
    with database.read() as session:
        job = session.get(Job, job_id)
        assert job is not None
        return job


def events_of(database: Database, job_id: str) -> list[JobEvent]:
    with database.read() as session:
        return list(
            session.scalars(select(JobEvent).where(JobEvent.job_id == job_id).order_by(JobEvent.id))
        )


def statuses_of(database: Database, job_id: str) -> list[str]:
    return [
        event.data["status"]
        for event in events_of(database, job_id)
        if event.type == "status" and event.data
    ]


def _add_blob(database: Database, store: BlobStore, path: Path) -> str:
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    store.put_file(path, content_key(sha256))
    with database.write() as session:
        if session.get(Blob, sha256) is None:
            session.add(Blob(sha256=sha256, size_bytes=path.stat().st_size, touched_at=utc_now()))
    return sha256
