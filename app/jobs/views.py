"""A job as the API shows it, and as webhooks tell of it."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from app.fields import LabelKey
from app.jobs.tables import FINISHED, Job

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]


class JobError(BaseModel):
    """Why a job failed; `message` says what to do."""

    code: str
    message: str
    stage: str | None = None
    retryable: bool = False
    details: dict[str, Any] | None = None
    """Figures that belong to the error, as the best plan found of `constraint_unmet`."""


class JobUrls(BaseModel):
    """Where to go from here."""

    self: str
    cancel: str
    events: str
    artifacts: str


class JobView(BaseModel):
    """A job. Wait until `finished`."""

    model_config = {"use_attribute_docstrings": True}

    id: str
    method: str
    status: Status
    finished: bool
    stage: str | None
    progress: float
    message: str
    eta_seconds: float | None
    attempt: int
    queue_position: int | None
    """1 is next, 1000 stands for all further places; null in lists, and once it has left the
    queue."""
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: JobError | None
    result: dict[str, Any] | None
    """Figures of a succeeded job: baseline, artifacts, recommended, layers, environment,
    provenance."""
    labels: dict[LabelKey, str]
    urls: JobUrls
    spec: dict[str, Any]
    """The request, with all defaults filled in."""


def show_job(job: Job, queue_position: int | None = None) -> JobView:
    """Return the job as the API shows it."""
    url = f"/v1/jobs/{job.id}"
    return JobView(
        id=job.id,
        method=job.method,
        status=job.status,
        finished=job.status in FINISHED,
        stage=job.stage,
        progress=job.progress,
        message=job.message,
        eta_seconds=job.eta_seconds,
        attempt=job.attempt,
        queue_position=queue_position,
        cancel_requested_at=job.cancel_requested_at,
        created_at=job.created_at,
        started_at=job.started_at,
        finished_at=job.finished_at,
        error=None if job.error is None else JobError.model_validate(job.error),
        result=job.result,
        labels=job.labels,
        urls=JobUrls(
            self=url, cancel=f"{url}/cancel", events=f"{url}/events", artifacts=f"{url}/artifacts"
        ),
        spec=job.spec,
    )
