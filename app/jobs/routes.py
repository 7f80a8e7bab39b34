"""Jobs: submit, wait for, list, cancel, remove; their events and artifacts."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Request, Response
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.idempotency.answers import IdempotencyKey, answer_once
from app.jobs import repository, service
from app.jobs.bodies import JobRequest
from app.jobs.prefer import wait_preference
from app.jobs.schemas import (
    ArtifactView,
    EventQuery,
    EventView,
    JobQuery,
)
from app.jobs.stream import MEDIA_TYPE, stream_events, wants_stream
from app.jobs.tables import FINISHED, Job
from app.jobs.views import JobView, show_job
from app.problems import BODY, GUARDED, INVALID, WAITING, document
from app.responses import (
    NOT_MODIFIED,
    Page,
    PageQuery,
    given_tags,
    json_answer,
    matches,
    not_modified,
    take_page,
)
from app.state import Services, services

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

_ONE = GUARDED | INVALID | {404: ["not_found"]}
_SUBMIT_CONFLICTS = ["too_many_jobs", "project_full", "idempotency_conflict"]
SUBMIT = (
    BODY
    | GUARDED
    | {
        409: ["too_many_jobs", "project_full"],
        422: [
            "invalid_request", "model_not_found", "dataset_not_found", "bad_signature",
            "shape_mismatch", "label_mismatch", "inputs_unknown", "device_unavailable",
            "webhook_refused", "webhook_secret_missing",
        ],
    }
)  # fmt: skip
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {"content": {MEDIA_TYPE: {"schema": {"type": "string"}}}},
    204: {"description": "The job has ended, and no event comes after `Last-Event-ID`."},
}
_LastEventId = Annotated[
    int | None,
    Header(alias="Last-Event-ID", ge=0, lt=2**63, description="Goes on after this event."),
]
_Prefer = Annotated[
    str | None,
    Header(description="`wait=30`: hold the answer back until the job changes (RFC 7240)."),
]


@router.post(
    "",
    status_code=202,
    response_model=JobView,
    responses=document(SUBMIT | {409: _SUBMIT_CONFLICTS}),
)
def create_job(
    request: Request, principal: Writer, body: JobRequest, key: IdempotencyKey = None
) -> Response:
    """Submit a job."""
    state = services(request)
    return answer_once(
        state.database,
        principal.project_id,
        key,
        [request.url.path, body.model_dump(mode="json")],
        make=lambda: service.submit_job(state.database, principal.project_id, body, state.settings),
        show=partial(_show_new, request),
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
    return json_answer(request, take_page([show_job(job) for job in jobs], query.limit))


@router.get("/{job_id}", response_model=JobView, responses=document(_ONE | WAITING) | NOT_MODIFIED)
async def get_job(
    request: Request, principal: Reader, job_id: str, prefer: _Prefer = None
) -> Response:
    """Look at one job, or wait for it to change."""
    state = services(request)
    headers = {}
    wait_s = wait_preference(request, state.settings.limits.wait_s_max)
    if wait_s is not None:
        headers["Preference-Applied"] = f"wait={wait_s}"
        await _wait(request, state, principal.project_id, job_id, wait_s)
    return await run_in_threadpool(_answer, request, state, principal.project_id, job_id, headers)


async def _wait(
    request: Request, state: Services, project_id: str, job_id: str, wait_s: int
) -> None:
    """Return when the job is another than the client knows, is finished, or time is up."""
    now, _ = await run_in_threadpool(_glance, state, project_id, job_id)
    known = {service.etag_version(tag) for tag in given_tags(request)} or {now.version}
    if now.status not in FINISHED and now.version in known:
        with state.waits.hold(project_id):
            await state.waiter.wait(job_id, now.version, wait_s)


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
    return json_answer(request, show_job(job), status=202, etag=service.job_etag(job, None))


@router.post(
    "/{job_id}/retry",
    status_code=202,
    response_model=JobView,
    responses=document(SUBMIT | {404: ["not_found"], 409: [*_SUBMIT_CONFLICTS, "not_finished"]}),
)
def retry_job(
    request: Request, principal: Writer, job_id: str, key: IdempotencyKey = None
) -> Response:
    """Submit a finished job once more: a new one with the same spec."""
    state = services(request)
    return answer_once(
        state.database,
        principal.project_id,
        key,
        [request.url.path],
        make=lambda: service.retry_job(
            state.database, principal.project_id, job_id, state.settings
        ),
        show=partial(_show_new, request),
    )


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
    responses=document(_ONE | WAITING) | NOT_MODIFIED | _STREAM,
)
async def list_events(
    request: Request,
    principal: Reader,
    job_id: str,
    query: Annotated[EventQuery, Query()],
    last_event_id: _LastEventId = None,
) -> Response:
    """List what happened to a job, oldest first; or follow it, with Accept: text/event-stream."""
    if wants_stream(request):
        after = query.after if last_event_id is None else last_event_id
        return await stream_events(request, principal, job_id, after)
    return await run_in_threadpool(_list_events, request, principal.project_id, job_id, query)


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


def _show_new(request: Request, session: Session, job: Job) -> Response:
    position = repository.find_queue_position(session, job)
    return json_answer(
        request,
        show_job(job, position),
        status=202,
        etag=service.job_etag(job, position),
        headers={"Location": f"/v1/jobs/{job.id}"},
    )


def _list_events(request: Request, project_id: str, job_id: str, query: EventQuery) -> Response:
    with services(request).database.read() as session:
        job = repository.get_job(session, project_id, job_id)
        events = repository.list_events(session, job.id, query.limit + 1, query.after)
    views = [EventView.model_validate(event) for event in events]
    return json_answer(request, take_page(views, query.limit))


def _answer(
    request: Request, state: Services, project_id: str, job_id: str, headers: dict[str, str]
) -> Response:
    """Answer with the job, or, without reading all of it, that the client has it already."""
    if given_tags(request) and request.method == "GET":
        now, position = _glance(state, project_id, job_id)
        etag = service.job_etag(now, position)
        if matches(request, etag):
            return not_modified(etag, headers)
    with state.database.read() as session:
        job = repository.get_job(session, project_id, job_id)
        position = repository.find_queue_position(session, job)
    etag = service.job_etag(job, position)
    return json_answer(request, show_job(job, position), etag=etag, headers=headers)


def _glance(state: Services, project_id: str, job_id: str) -> tuple[repository.Glance, int | None]:
    with state.database.read() as session:
        found = repository.glance_at_job(session, project_id, job_id)
        return found, repository.find_queue_position(session, found)
