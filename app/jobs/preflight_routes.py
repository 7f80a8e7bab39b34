"""Preflights: would this job run, and what would it compress?"""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.jobs import repository, service
from app.jobs.bodies import JobRequest
from app.jobs.routes import SUBMIT
from app.jobs.schemas import PreflightView
from app.jobs.tables import FINISHED, Job
from app.problems import GUARDED, INVALID, WAITING, document
from app.responses import NOT_MODIFIED, json_answer
from app.state import Services, services
from compress.spec.gpu import needs_gpu

router = APIRouter(prefix="/v1/preflight", tags=["jobs"])

_PENDING: dict[int | str, dict[str, Any]] = {
    202: {"model": PreflightView, "description": "Not known yet: poll `Location`."}
}


@router.post("", response_model=PreflightView, responses=document(SUBMIT | WAITING) | _PENDING)
async def create_preflight(request: Request, principal: Writer, body: JobRequest) -> Response:
    """Ask whether a job can run; takes the same body and makes no job."""
    state = services(request)
    limits = state.settings.limits
    with state.waits.hold(principal.project_id):  # refused before there is a preflight
        job = await run_in_threadpool(
            service.submit_preflight, state.database, principal.project_id, body, state.settings
        )
        deadline_s = time.monotonic() + limits.preflight_wait_s
        while job.status not in FINISHED and (left_s := deadline_s - time.monotonic()) > 0:
            if not await state.waiter.wait(job.id, job.version, left_s):
                break
            job, _ = await run_in_threadpool(_load, state, principal.project_id, job.id)
    return await run_in_threadpool(_answer, request, state, principal.project_id, job.id, 202)


@router.get(
    "/{preflight_id}",
    response_model=PreflightView,
    responses=document(GUARDED | INVALID | {404: ["not_found"]}) | NOT_MODIFIED,
)
def get_preflight(request: Request, principal: Reader, preflight_id: str) -> Response:
    """Look at a preflight that took longer."""
    return _answer(request, services(request), principal.project_id, preflight_id, 200)


def _answer(
    request: Request, state: Services, project_id: str, preflight_id: str, pending_status: int
) -> Response:
    job, queue_length = _load(state, project_id, preflight_id)
    view = service.show_preflight(job, queue_length)
    return json_answer(
        request,
        view,
        status=200 if view.finished else pending_status,
        headers={"Location": view.urls.self} if not view.finished else None,
    )


def _load(state: Services, project_id: str, preflight_id: str) -> tuple[Job, int]:
    with state.database.read() as session:
        job = repository.get_job(session, project_id, preflight_id, kind="preflight")
        joins = "gpu" if needs_gpu(job.spec["device"], job.spec["backend"]) else "cpu"
        return job, repository.count_waiting(session, joins)
