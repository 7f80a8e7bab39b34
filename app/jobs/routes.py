"""Jobs: submit, wait for, list, cancel, remove; their events and artifacts."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Header, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.jobs import repository, service
from app.jobs.prefer import wait_preference
from app.jobs.schemas import (
    ArtifactView,
    EventQuery,
    EventView,
    JobQuery,
    JobRequest,
    JobView,
)
from app.jobs.tables import FINISHED, Job
from app.problems import BODY, GUARDED, INVALID, document
from app.responses import (
    NOT_MODIFIED,
    Page,
    PageQuery,
    given_tags,
    json_answer,
    take_page,
)
from app.state import Services, services

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_ONE = GUARDED | INVALID | {404: ["not_found"]}
SUBMIT = (
    BODY
    | GUARDED
    | {
        422: [
            "invalid_request", "model_not_found", "dataset_not_found", "bad_signature",
            "shape_mismatch", "label_mismatch", "inputs_unknown", "device_unavailable",
        ]
    }
)  # fmt: skip
_Prefer = Annotated[
    str | None,
    Header(description="`wait=30`: hold the answer back until the job changes (RFC 7240)."),
]


@router.post("", status_code=202, response_model=JobView, responses=document(SUBMIT))
def create_job(request: Request, principal: Writer, body: JobRequest) -> Response:
    """Submit a job."""
    state = services(request)
    job = service.submit_job(state.database, principal.project_id, body, state.settings.limits)
    with state.database.read() as session:
        position = repository.find_queue_position(session, job)
    return json_answer(
        request,
        service.show_job(job, position),
        status=202,
        etag=service.job_etag(job, position),
        headers={"Location": f"/v1/jobs/{job.id}"},
    )


@router.get(
    "",
    response_model=Page[JobView],
    responses=document(GUARDED | INVALID) | NOT_MODIFIED,
)
def list_jobs(request: Request, principal: Reader, query: Annotated[JobQuery, Query()]) -> Response:
    """List the project's jobs, newest first."""
    key, _, value = (query.label or "").partition(":")
    wanted = repository.JobFilter(
        status=(query.status,) if query.status else (),
        method=query.method,
        created_after=query.created_after,
        label=(key, value) if query.label is not None else None,
    )
    with services(request).database.read() as session:
        jobs = repository.list_jobs(
            session, principal.project_id, wanted, query.limit + 1, query.after
        )
    return json_answer(request, take_page([service.show_job(job) for job in jobs], query.limit))


@router.get("/{job_id}", response_model=JobView, responses=document(_ONE) | NOT_MODIFIED)
async def get_job(
    request: Request, principal: Reader, job_id: str, prefer: _Prefer = None
) -> Response:
    """Look at one job, or wait for it to change."""
    state = services(request)
    job, position = await run_in_threadpool(_load, state, principal.project_id, job_id)
    headers = {}
    wait_s = wait_preference(request, state.settings.limits.wait_s_max)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        known = {service.etag_version(tag) for tag in given_tags(request)} or {job.version}
        if job.status not in FINISHED and job.version in known:
            await state.waiter.wait(job_id, job.version, wait_s)
            job, position = await run_in_threadpool(_load, state, principal.project_id, job_id)
    return json_answer(
        request,
        service.show_job(job, position),
        etag=service.job_etag(job, position),
        headers=headers,
    )


@router.post(
    "/{job_id}/cancel",
    status_code=202,
    response_model=JobView,
    responses=document(_ONE | {409: ["already_finished"], 413: ["too_large"]}),
)
def cancel_job(request: Request, principal: Writer, job_id: str) -> Response:
    """Cancel a job: at once if it is queued, within seconds if it runs."""
    with services(request).database.write() as session:
        job = repository.cancel_job(session, principal.project_id, job_id)
    return json_answer(request, service.show_job(job), status=202, etag=service.job_etag(job, None))


@router.delete("/{job_id}", status_code=204, responses=document(_ONE | {409: ["in_use"]}))
def delete_job(request: Request, principal: Writer, job_id: str) -> Response:
    """Remove a finished job, its events and its artifacts."""
    state = services(request)
    with state.database.write() as session:
        repository.remove_job(session, principal.project_id, job_id)
    state.store.delete_tree(f"jobs/{job_id}")
    return Response(status_code=204)


@router.get(
    "/{job_id}/events",
    response_model=Page[EventView],
    responses=document(_ONE) | NOT_MODIFIED,
)
def list_events(
    request: Request, principal: Reader, job_id: str, query: Annotated[EventQuery, Query()]
) -> Response:
    """List what happened to a job, oldest first."""
    with services(request).database.read() as session:
        job = repository.get_job(session, principal.project_id, job_id)
        events = repository.list_events(session, job.id, query.limit + 1, query.after)
    views = [EventView.model_validate(event) for event in events]
    return json_answer(request, take_page(views, query.limit))


@router.get(
    "/{job_id}/artifacts",
    response_model=Page[ArtifactView],
    responses=document(_ONE) | NOT_MODIFIED,
)
def list_artifacts(
    request: Request, principal: Reader, job_id: str, query: Annotated[PageQuery, Query()]
) -> Response:
    """List the files that a job made, newest first."""
    with services(request).database.read() as session:
        job = repository.get_job(session, principal.project_id, job_id)
        artifacts = repository.list_artifacts(session, job.id, query.limit + 1, query.after)
    views = [service.show_artifact(artifact) for artifact in artifacts]
    return json_answer(request, take_page(views, query.limit))


def _load(state: Services, project_id: str, job_id: str) -> tuple[Job, int | None]:
    with state.database.read() as session:
        job = repository.get_job(session, project_id, job_id)
        return job, repository.find_queue_position(session, job)
