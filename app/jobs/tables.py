"""Tables of jobs, their labels, events and artifacts. The job row is the truth."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    ForeignKey,
    Index,
    Integer,
    String,
    Text,
    false,
    literal,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base

FINISHED = ("succeeded", "failed", "cancelled")


def spelled_out(value: str) -> ColumnElement[str]:
    """Return the value as SQL, not as a parameter: the planner must see that a part of the rows,
    that has an index of its own, is meant."""
    return literal(value, literal_execute=True)


def _some(name: str, *columns: str, where: str) -> Index:
    return Index(name, *columns, sqlite_where=text(where), postgresql_where=text(where))


class Job(Base):
    """One job, or one preflight (`kind`): queued -> running -> succeeded | failed | cancelled.

    `fence` rises with each claim; every write of a worker carries it, so a supervisor that wakes
    after its lease changes nothing. `version` rises with every change: it is the ETag.
    """

    __tablename__ = "jobs"
    __table_args__ = (
        Index("ix_jobs_list", "project_id", "kind", "id"),
        Index("ix_jobs_list_by_status", "project_id", "kind", "status", "id"),
        Index("ix_jobs_list_by_method", "project_id", "kind", "method", "id"),
        Index("ix_jobs_lease", "status", "lease_expires_at"),
        Index("ix_jobs_expiry", "project_id", "kind", "finished_at"),
        _some("ix_jobs_oldest", "queue", "created_at", where="status = 'queued'"),
        _some("ix_jobs_old_preflights", "finished_at", where="kind = 'preflight'"),
        Index(
            "ix_jobs_untallied",
            "finished_at",
            sqlite_where=text("tallied IS 0 AND finished_at IS NOT NULL"),
            postgresql_where=text("tallied IS FALSE AND finished_at IS NOT NULL"),
        ),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    kind: Mapped[str] = mapped_column(String(16), default="job")  # job | preflight
    method: Mapped[str] = mapped_column(String(32))
    queue: Mapped[str] = mapped_column(String(16))  # cpu | gpu | inspect
    status: Mapped[str] = mapped_column(String(16), default="queued")
    stage: Mapped[str | None] = mapped_column(String(16))
    progress: Mapped[float] = mapped_column(default=0.0)
    message: Mapped[str] = mapped_column(Text, default="")
    eta_seconds: Mapped[float | None]
    spec: Mapped[dict[str, Any]]
    """The request body with defaults filled in, as the API shows it."""
    model_id: Mapped[str] = mapped_column(String(40), index=True)
    """No foreign key: a model may be deleted once the job has finished."""
    student_model_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """The model that a distillation trains; none where it is cut out of the teacher."""
    labels: Mapped[dict[str, Any]]
    priority: Mapped[int] = mapped_column(Integer, default=0)
    timeout_s: Mapped[int] = mapped_column(Integer)
    error: Mapped[dict[str, Any] | None]
    result: Mapped[dict[str, Any] | None]

    version: Mapped[int] = mapped_column(Integer, default=1)
    attempt: Mapped[int] = mapped_column(Integer, default=0)
    fence: Mapped[int] = mapped_column(Integer, default=0)
    owner: Mapped[str | None] = mapped_column(String(200))
    lease_expires_at: Mapped[datetime | None]
    message_sent_at: Mapped[datetime]
    """When a wake-up message last went out; the sweeper sends another after a while."""

    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    cancel_requested_at: Mapped[datetime | None]

    request_id: Mapped[str | None] = mapped_column(String(128))
    """Of the request that submitted it; log lines of workers hold it too."""
    traceparent: Mapped[str | None] = mapped_column(String(64))
    """Of that request's span, where traces are sent."""
    peak_memory_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Of the last attempt's process, without mapped input files."""
    tallied: Mapped[bool] = mapped_column(default=False, server_default=false())
    """Whether `app.metrics` has counted its end."""


# down and up, as jobs are claimed: if both went one way, each claim would sort the queue
Index("ix_jobs_claim", Job.status, Job.queue, Job.priority.desc(), Job.id)


class JobDataset(Base):
    """A dataset that a job reads; it cannot be deleted while the job is unfinished."""

    __tablename__ = "job_datasets"

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    role: Mapped[str] = mapped_column(String(16), primary_key=True)
    # calibration | evaluation | training
    dataset_id: Mapped[str] = mapped_column(String(40), index=True)


class JobLabel(Base):
    """One label of one job, for filtering."""

    __tablename__ = "job_labels"
    __table_args__ = (Index("ix_job_labels_find", "project_id", "key", "value", "job_id"),)

    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), primary_key=True)
    key: Mapped[str] = mapped_column(String(63), primary_key=True)
    value: Mapped[str] = mapped_column(String(255))
    project_id: Mapped[str] = mapped_column(String(40))


class JobEvent(Base):
    """Something that happened to a job: type status, stage, progress, metrics or log."""

    __tablename__ = "job_events"
    __table_args__ = (Index("ix_job_events_page", "job_id", "id"),)

    id: Mapped[int] = mapped_column(
        BigInteger().with_variant(Integer, "sqlite"), primary_key=True, autoincrement=True
    )
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime]
    level: Mapped[str] = mapped_column(String(8), default="info")
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any] | None]


class Artifact(Base):
    """A file that a succeeded job made; inserted in the transaction that ends the job."""

    __tablename__ = "artifacts"
    __table_args__ = (Index("ix_artifacts_stored", "project_id", "size_bytes"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), index=True)
    project_id: Mapped[str] = mapped_column(String(40))
    name: Mapped[str] = mapped_column(String(200))
    kind: Mapped[str] = mapped_column(String(16))  # model | report
    format: Mapped[str] = mapped_column(String(16))
    precision: Mapped[str | None] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    storage_key: Mapped[str] = mapped_column(String(300))
    created_at: Mapped[datetime]


class WorkerSeen(Base):
    """A worker that was alive lately, written by its sweeper."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(200), primary_key=True)
    queues: Mapped[list[Any]]
    slots: Mapped[int] = mapped_column(Integer)
    info: Mapped[dict[str, Any]]
    """`{torch, devices, sandbox: {layer: bool}}`."""
    started_at: Mapped[datetime]
    seen_at: Mapped[datetime] = mapped_column(index=True)
