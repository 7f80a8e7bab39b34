"""Outermost middleware: a request id in and out, one log line per request, no bare 500."""

from __future__ import annotations

import logging
import re
import time
import uuid

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.audit.actor import Actor, actor_var
from app.logs import request_id_var
from app.problems import problem_response

log = logging.getLogger("app.request")

_VALID = re.compile(r"[A-Za-z0-9._-]{1,128}")
_QUIET = ("/healthz", "/readyz")


class RequestIdMiddleware:
    """Gives every request an id (the client's `X-Request-Id` if it is a sane one)."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _VALID.fullmatch(given) else uuid.uuid4().hex
        token = request_id_var.set(request_id)
        actor_token = actor_var.set(actor := Actor(request_id))
        began_s = time.perf_counter()
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            await self.app(scope, receive, send_with_id)
        except ClientDisconnect:
            status = 499
        except Exception:
            log.exception("unexpected error")
            if status == 0:
                response = problem_response(
                    500,
                    "internal_error",
                    "Internal error",
                    "Something went wrong in the server. Try again; if it stays, give the "
                    "operator the request_id.",
                )
                await response(scope, receive, send_with_id)
            else:
                raise  # the answer has begun: the server must cut the connection
        finally:
            log.log(
                logging.DEBUG if scope["path"] in _QUIET else logging.INFO,
                "%s %s",
                scope["method"],
                scope["path"],
                extra={
                    "status": status,
                    "duration_ms": round((time.perf_counter() - began_s) * 1000, 1),
                    **({"key_id": actor.key_id} if actor.key_id else {}),
                },
            )
            actor_var.reset(actor_token)
            request_id_var.reset(token)
