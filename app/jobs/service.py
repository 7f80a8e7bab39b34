"""Submitting jobs and preflights, and showing them."""

from __future__ import annotations

from app.db import Database, utc_now, wake
from app.ids import new_id
from app.jobs import repository
from app.jobs.checks import check_job
from app.jobs.schemas import (
    ArtifactView,
    ConvertJob,
    JobError,
    JobUrls,
    JobView,
    PreflightError,
    PreflightUrls,
    PreflightView,
    PtqJob,
)
from app.jobs.tables import FINISHED, Artifact, Job
from app.queue import QueueName
from app.settings import LimitSettings

PREFLIGHT_TIMEOUT_S = 120


def submit_job(
    database: Database, project_id: str, request: PtqJob | ConvertJob, limits: LimitSettings
) -> Job:
    """Check and insert a job; the wake-up message goes out after the commit."""
    queue: QueueName = "gpu" if request.device == "cuda" else "cpu"
    return _submit(database, project_id, request, limits, "job", queue)


def submit_preflight(
    database: Database, project_id: str, request: PtqJob | ConvertJob, limits: LimitSettings
) -> Job:
    """Check and insert a preflight, in a queue that long jobs cannot fill."""
    return _submit(database, project_id, request, limits, "preflight", "inspect")


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


def job_etag(job: Job, queue_position: int | None) -> str:
    """Return the tag: the row's version, and the place in the queue, which others move."""
    return f'"{job.version}-{queue_position or 0}"'


def etag_version(tag: str) -> int | None:
    """Return the row's version in a tag that `job_etag` made."""
    version = tag.strip().removeprefix("W/").strip('"').partition("-")[0]
    return int(version) if version.isdecimal() and len(version) < 10 else None


def show_preflight(job: Job, queue_length: int) -> PreflightView:
    """Return the preflight as the API shows it."""
    finished = job.status in FINISHED
    error = None
    if job.error is not None:
        error = PreflightError(code=job.error["code"], message=job.error["message"])
    elif job.status == "cancelled":
        error = PreflightError(code="cancelled", message="The preflight was cancelled.")
    return PreflightView(
        id=job.id,
        status=job.status,
        finished=finished,
        ok=job.status == "succeeded" if finished else None,
        error=error,
        result=job.result,
        queue_length=queue_length,
        created_at=job.created_at,
        finished_at=job.finished_at,
        urls=PreflightUrls(self=f"/v1/preflight/{job.id}"),
    )


def show_artifact(artifact: Artifact) -> ArtifactView:
    """Return the artifact as the API shows it."""
    return ArtifactView(
        id=artifact.id,
        job_id=artifact.job_id,
        name=artifact.name,
        kind=artifact.kind,
        format=artifact.format,
        precision=artifact.precision,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        created_at=artifact.created_at,
        url=f"/v1/artifacts/{artifact.id}/content",
    )


def _submit(
    database: Database,
    project_id: str,
    request: PtqJob | ConvertJob,
    limits: LimitSettings,
    kind: str,
    queue: QueueName,
) -> Job:
    now = utc_now()
    spec = request.model_dump(mode="json")
    spec["timeout_s"] = request.timeout_s or limits.timeout_s_default
    job = Job(
        id=new_id("job"),
        project_id=project_id,
        kind=kind,
        method=request.method,
        queue=queue,
        status="queued",
        stage=None,
        progress=0.0,
        message="waiting for a worker",
        eta_seconds=None,
        spec=spec,
        model_id=request.model_id,
        labels=request.labels,
        priority=request.priority,
        timeout_s=spec["timeout_s"]
        if kind == "job"
        else min(spec["timeout_s"], PREFLIGHT_TIMEOUT_S),
        error=None,
        result=None,
        version=1,
        attempt=0,
        fence=0,
        owner=None,
        lease_expires_at=None,
        message_sent_at=now,
        created_at=now,
        started_at=None,
        finished_at=None,
        cancel_requested_at=None,
    )
    with database.write() as session:
        datasets = check_job(session, project_id, request, request.method, limits)
        repository.insert_job(session, job, datasets)
        wake(session, job.id, queue)
    return job
