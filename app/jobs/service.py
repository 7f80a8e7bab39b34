"""Submitting jobs and preflights, and showing them."""

from __future__ import annotations

import logging

from pydantic import TypeAdapter, ValidationError

from app.audit.repository import record
from app.db import Database, utc_now, wake
from app.error_handlers import field_errors
from app.errors import Conflict, Unprocessable
from app.idempotency.answers import keep_answer
from app.ids import new_id
from app.jobs import repository
from app.jobs.bodies import AnyJob, JobRequest
from app.jobs.checks import check_job
from app.jobs.schemas import (
    ArtifactView,
    PreflightError,
    PreflightUrls,
    PreflightView,
)
from app.jobs.tables import FINISHED, Artifact, Job
from app.jobs.webhook_checks import check_webhook
from app.limits.quota import check_jobs
from app.logs import request_id_var
from app.queue import QueueName
from app.settings import Settings
from app.tracing import current_traceparent
from compress.spec.gpu import needs_gpu

log = logging.getLogger(__name__)

PREFLIGHT_TIMEOUT_S = 120
_JOB_REQUEST: TypeAdapter[AnyJob] = TypeAdapter(JobRequest)


def submit_job(
    database: Database,
    project_id: str,
    request: AnyJob,
    settings: Settings,
) -> Job:
    """Check and insert a job; the wake-up message goes out after the commit."""
    queue: QueueName = "gpu" if needs_gpu(request.device, request.backend) else "cpu"
    return _submit(database, project_id, request, settings, "job", queue)


def retry_job(database: Database, project_id: str, job_id: str, settings: Settings) -> Job:
    """Submit a finished job once more, checked anew: what it needs may be gone.

    Raises:
        NotFound: also for another project's.
        Conflict: `not_finished`.
        Unprocessable: as for any job; also if this version reads its spec otherwise.
    """
    with database.read() as session:
        job = repository.get_job(session, project_id, job_id)
    if job.status not in FINISHED:
        raise Conflict(
            "The job has not finished. Wait for it, cancel it, or submit another beside it.",
            code="not_finished",
        )
    try:
        request = _JOB_REQUEST.validate_python(job.spec)
    except ValidationError as error:
        raise Unprocessable(
            "This version of the service cannot run the job's spec as it is; submit it anew.",
            code="invalid_request",
            errors=field_errors(
                [{**each, "loc": ("body", *each["loc"])} for each in error.errors()], job.spec
            ),
        ) from error
    return submit_job(database, project_id, request, settings)


def submit_preflight(
    database: Database,
    project_id: str,
    request: AnyJob,
    settings: Settings,
) -> Job:
    """Check and insert a preflight, in a queue that long jobs cannot fill."""
    return _submit(database, project_id, request, settings, "preflight", "inspect")


def job_etag(job: Job | repository.Glance, queue_position: int | None) -> str:
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
    request: AnyJob,
    settings: Settings,
    kind: str,
    queue: QueueName,
) -> Job:
    now = utc_now()
    spec = request.model_dump(mode="json")
    spec["timeout_s"] = request.timeout_s or settings.limits.timeout_s_default
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
        student_model_id=spec["config"].get("student_model_id"),
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
        request_id=request_id_var.get(),
        traceparent=current_traceparent(),
    )
    with database.write() as session:
        check_jobs(session, project_id, kind)
        check_webhook(session, project_id, request.webhook, settings.webhook.private_networks)
        datasets = check_job(session, project_id, request, settings.limits)
        repository.insert_job(session, job, datasets)
        record(session, f"{kind}.create", project_id, job.id)
        keep_answer(session, job)
        wake(session, job.id, queue)
    log.info("%s submitted", kind, extra={"job_id": job.id})
    return job
