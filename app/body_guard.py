"""Middleware that bounds bodies: JSON in size and depth before anything parses it, all in time."""

from __future__ import annotations

import asyncio
import re

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import BadRequest, RequestTimeout, ServiceError, TooLarge
from app.problems import error_response
from app.uploads.headers import PIECE

MAX_DEPTH = 32
_TOKEN = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{}]', re.DOTALL)
_SMALL_BYTES = 64 * 1024


class BodyGuardMiddleware:
    """Reads the body up to the limit and hands it on; uploads stream past it, but may not stall."""

    def __init__(
        self, app: ASGIApp, *, limit_bytes: int, stall_s: float, upload_paths: frozenset[str]
    ) -> None:
        self.app = app
        self.limit_bytes = limit_bytes
        self.stall_s = stall_s
        self.upload_paths = upload_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        receive = _in_time(receive, self.stall_s)
        if self._is_upload(scope):
            await self.app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive)
        except ServiceError as error:
            await error_response(error)(scope, receive, send)
            return
        replayed = False

        async def replay() -> Message:
            nonlocal replayed
            if replayed:
                return await receive()  # only a disconnect can follow
            replayed = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, replay, send)

    def _is_upload(self, scope: Scope) -> bool:
        kind = Headers(scope=scope).get("content-type", "").lower()
        if scope["path"] in self.upload_paths:
            return kind.startswith("multipart/")
        return scope["path"].startswith("/v1/uploads") and kind.startswith(PIECE)

    async def _read(self, scope: Scope, receive: Receive) -> bytes:
        declared = Headers(scope=scope).get("content-length", "0")
        if declared.isdecimal() and int(declared) > self.limit_bytes:
            raise self._too_large()
        body = bytearray()
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            body += message.get("body", b"")
            if len(body) > self.limit_bytes:
                raise self._too_large()
            if not message.get("more_body", False):
                break
        data = bytes(body)
        if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
            if len(data) > _SMALL_BYTES:
                await run_in_threadpool(check_depth, data)
            else:
                check_depth(data)
        return data

    def _too_large(self) -> TooLarge:
        return TooLarge(
            f"The body is larger than {self.limit_bytes} bytes. Send files as multipart/form-data."
        )


def _in_time(receive: Receive, stall_s: float) -> Receive:
    """Return `receive` that raises RequestTimeout if the body stops coming for `stall_s`."""
    has_ended = False

    async def receive_in_time() -> Message:
        nonlocal has_ended
        if has_ended:
            return await receive()  # waits for the client to hang up, which may take its time
        try:
            async with asyncio.timeout(stall_s):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(
                f"Nothing of the body arrived for {stall_s:g} s, and nothing was stored. "
                "Send it again."
            ) from None
        has_ended = not message.get("more_body", False)
        return message

    return receive_in_time


def check_depth(data: bytes) -> None:
    """Raise BadRequest if brackets nest deeper than any body of ours does.

    Raises:
        BadRequest: `json_too_deep`.
    """
    depth = 0
    for token in _TOKEN.finditer(data):
        if token[0] in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise BadRequest(
                    f"The JSON nests deeper than {MAX_DEPTH} levels.", code="json_too_deep"
                )
        elif token[0] in b"]}":
            depth -= 1
