"""The events of a job as server-sent events, from any of them on until the job has ended.

Source: WHATWG HTML, "Server-sent events". A client that lost the stream asks again with
`Last-Event-ID`; 204 tells one that has them all to ask no more.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from app.auth.principal import Principal
from app.auth.repository import is_live
from app.errors import NotFound
from app.head import is_head
from app.jobs import repository
from app.jobs.schemas import EventView
from app.jobs.tables import FINISHED
from app.state import Services, services

log = logging.getLogger(__name__)

MEDIA_TYPE = "text/event-stream"
KEEP_ALIVE_S = 15.0
_LOOK_S = 1.0  # so often at least: an event may come without a change of the job itself
_PAGE = 200
_RETRY_MS = 2000


@dataclass(frozen=True)
class _Look:
    version: int
    finished: bool
    events: list[EventView]


def wants_stream(request: Request) -> bool:
    """Return whether the client asks for server-sent events, and not only for their headers."""
    return MEDIA_TYPE in request.headers.get("accept", "") and not is_head(request.scope)


async def stream_events(
    request: Request, principal: Principal, job_id: str, after: int
) -> Response:
    """Answer with the job's events after `after`, as they come.

    Raises:
        NotFound: also for another project's job.
        RateLimited, Unavailable: `too_many_waiting`.
    """
    state = services(request)
    first = await run_in_threadpool(_look, state, principal, job_id, after)
    if first.finished and not first.events and after:
        return Response(status_code=204)
    state.waits.enter(principal.project_id)  # the answer leaves
    return _CountedResponse(
        partial(state.waits.leave, principal.project_id),
        _follow(state, principal, job_id, after, first),
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


class _CountedResponse(StreamingResponse):
    """Says when it is over. Its generator could not: one that was never begun ends unheard."""

    def __init__(self, leave: Callable[[], None], *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._leave = leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._leave()


async def _follow(
    state: Services, principal: Principal, job_id: str, after: int, look: _Look
) -> AsyncIterator[str]:
    # within an event: on its own, some clients take `retry` for an empty one
    hint = f"retry: {_RETRY_MS}\n"
    said_s = time.monotonic()
    while True:
        for event in look.events:
            data = event.model_dump_json()
            yield f"{hint}id: {event.id}\nevent: {event.type}\ndata: {data}\n\n"
            hint, after, said_s = "", event.id, time.monotonic()
        if look.finished and len(look.events) < _PAGE:
            return
        if not look.events:
            await state.waiter.wait(job_id, look.version, _LOOK_S)
        if state.waiter.closed:
            return
        if time.monotonic() - said_s > KEEP_ALIVE_S:
            yield ": still here\n\n"
            said_s = time.monotonic()
        try:
            look = await run_in_threadpool(_look, state, principal, job_id, after)
        except NotFound:
            return
        except SQLAlchemyError as error:
            log.warning("cannot look at a followed job: %s", error, extra={"job_id": job_id})
            look = _Look(look.version, False, [])
            await asyncio.sleep(_LOOK_S)


def _look(state: Services, principal: Principal, job_id: str, after: int) -> _Look:
    with state.database.read() as session:
        if not is_live(session, principal.key_id):  # revoked since the stream began
            raise NotFound("There is no such job.")
        job = repository.get_job(session, principal.project_id, job_id)
        events = repository.list_events(session, job.id, _PAGE, after)
        views = [EventView.model_validate(event) for event in events]
        return _Look(job.version, job.status in FINISHED, views)
