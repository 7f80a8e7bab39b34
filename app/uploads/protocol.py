"""Middleware for what tus asks of every answer, and of clients behind narrow proxies."""

from __future__ import annotations

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.uploads.headers import VERSION

_PATH = "/v1/uploads"


class TusMiddleware:
    """Says `Tus-Resumable` on answers below /v1/uploads, and heeds `X-HTTP-Method-Override`."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not (scope["path"] + "/").startswith(_PATH + "/"):
            await self.app(scope, receive, send)
            return
        override = Headers(scope=scope).get("x-http-method-override", "").upper()
        if scope["method"] == "POST" and override in ("PATCH", "DELETE", "HEAD"):
            scope = {**scope, "method": override}

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["Tus-Resumable"] = VERSION
            await send(message)

        await self.app(scope, receive, send_with_version)
