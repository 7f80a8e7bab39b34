"""Middleware that answers HEAD wherever GET is answered (RFC 9110 9.3.2)."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

_KEY = "tersor.head"


def is_head(scope: Scope) -> bool:
    """Return whether nobody will see the body, so that it need not be made."""
    return _KEY in scope


class HeadMiddleware:
    """Lets the route of GET answer, and keeps the body back; its headers are those of GET."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self.app(scope, receive, send)
            return

        async def send_without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        inner = {**scope, "method": "GET", _KEY: True}
        try:
            await self.app(inner, receive, send_without_body)
        finally:
            scope["route"] = inner.get("route")  # for those who count
