"""Is it alive, is it ready, and what can it do."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from sqlalchemy import text

from app.auth.principal import Reader
from app.jobs.repository import count_unfinished
from app.jobs.tables import WorkerSeen
from app.problems import GUARDED, document
from app.responses import NOT_MODIFIED, json_answer
from app.state import Services, services
from app.system.repository import SEEN_WITHIN_S, list_devices, list_live_workers
from app.version import VERSION

log = logging.getLogger(__name__)
router = APIRouter(tags=["service"])

_REMEMBER_S = 1.0


class Health(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Check(BaseModel):
    """One part that the service needs."""

    ok: bool
    detail: str


class Readiness(BaseModel):
    """Whether all parts work."""

    ready: bool
    checks: dict[Literal["database", "broker", "storage", "worker"], Check]


class System(BaseModel):
    """What this installation is."""

    version: str
    devices: list[str]
    workers: list[dict[str, Any]]
    queues: dict[str, dict[str, int]]
    limits: dict[str, int | float]


class _Memory:
    """The last answer of /readyz: it is open to all, and a look costs the disk a write."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.until_s = 0.0
        self.readiness: Readiness | None = None


@router.get("/healthz")
async def healthz() -> Health:
    """Alive: answers without looking at anything."""
    return Health()


@router.get(
    "/readyz",
    response_model=Readiness,
    responses={503: {"model": Readiness, "description": "A part does not work."}},
)
def readyz(request: Request) -> Response:
    """Ready: database, broker, storage, and a worker seen lately."""
    state = services(request)
    memory: _Memory = request.app.state.readiness
    with memory.lock:
        if memory.readiness is None or time.monotonic() > memory.until_s:
            memory.readiness = _look(state)
            memory.until_s = time.monotonic() + _REMEMBER_S
        readiness = memory.readiness
    return Response(
        readiness.model_dump_json(),
        200 if readiness.ready else 503,
        headers={"Cache-Control": "no-store"} | ({} if readiness.ready else {"Retry-After": "2"}),
        media_type="application/json",
    )


@router.get("/v1/system", response_model=System, responses=document(GUARDED) | NOT_MODIFIED)
def get_system(request: Request, _principal: Reader) -> Response:
    """Version, devices, workers, queue lengths and limits."""
    state = services(request)
    with state.database.read() as session:
        workers = list_live_workers(session)
        queues = count_unfinished(session)
    view = System(
        version=VERSION,
        devices=list_devices(workers),
        workers=[_show(worker) for worker in workers],
        queues=queues,
        limits=state.settings.limits.model_dump(),
    )
    return json_answer(request, view)


def install_memory(state: Any) -> None:
    """Give an application its own memory of readiness."""
    state.readiness = _Memory()


def _show(worker: WorkerSeen) -> dict[str, Any]:
    return {
        "id": worker.id,
        "queues": worker.queues,
        "slots": worker.slots,
        "started_at": worker.started_at.isoformat(),
        "seen_at": worker.seen_at.isoformat(),
        **worker.info,
    }


def _look(state: Services) -> Readiness:
    checks = {
        "database": _check("database", lambda: _ask_database(state)),
        "broker": _check("broker", state.publisher.check),
        "storage": _check("storage", state.store.check),
        "worker": _check("worker", lambda: _ask_workers(state)),
    }
    return Readiness.model_validate(
        {"ready": all(check.ok for check in checks.values()), "checks": checks}
    )


def _check(name: str, look: Callable[[], None]) -> Check:
    try:
        look()
    except Exception as error:  # whatever is wrong with a part, the answer is that it is not ready
        log.warning("not ready: %s: %s", name, error)
        detail = str(error) if isinstance(error, _NoWorker) else f"the {name} does not answer"
        return Check(ok=False, detail=detail)
    return Check(ok=True, detail="ok")


class _NoWorker(Exception):
    pass


def _ask_database(state: Services) -> None:
    with state.database.read() as session:
        session.execute(text("SELECT count(*) FROM projects"))


def _ask_workers(state: Services) -> None:
    with state.database.read() as session:
        if not list_live_workers(session):
            raise _NoWorker(f"no worker was seen in the last {SEEN_WITHIN_S:.0f} seconds")
