"""JSON answers with an ETag, honouring If-None-Match, and pages of lists."""

from __future__ import annotations

import hashlib
import re
from typing import Annotated, Any, Generic, TypeVar

from fastapi import Request, Response
from pydantic import BaseModel, Field

Item = TypeVar("Item")

NOT_MODIFIED: dict[int | str, dict[str, Any]] = {
    304: {"description": "Not modified: `If-None-Match` names the current ETag."}
}
_TAG = re.compile(r'(?:W/)?("[^"]*")')


class Page(BaseModel, Generic[Item]):
    """One page of a list."""

    data: list[Item]
    has_more: bool
    next_after: str | None = None
    """Give it as `after` to get the next page."""


class PageQuery(BaseModel):
    """Which page."""

    model_config = {"extra": "forbid", "use_attribute_docstrings": True}

    limit: Annotated[int, Field(ge=1, le=200)] = 50
    """How many at most."""
    after: Annotated[str | None, Field(pattern=r"^[a-z0-9_]{1,40}$")] = None
    """`next_after` of the page before."""


def take_page(items: list[Item], limit: int, key: str = "id") -> Page[Item]:
    """Return a page of `limit` items from a list that holds one more if there are more."""
    data = items[:limit]
    has_more = len(items) > limit
    return Page(
        data=data,
        has_more=has_more,
        next_after=str(getattr(data[-1], key)) if has_more else None,
    )


def given_tags(request: Request) -> list[str]:
    """Return the tags in `If-None-Match`."""
    return _TAG.findall(request.headers.get("if-none-match", ""))


def matches(request: Request, etag: str) -> bool:
    """Return whether `If-None-Match` names the tag (weak comparison, RFC 9110 13.1.2)."""
    given = request.headers.get("if-none-match")
    if given is None:
        return False
    return given.strip() == "*" or etag.removeprefix("W/") in given_tags(request)


def json_answer(
    request: Request,
    view: BaseModel,
    *,
    status: int = 200,
    etag: str | None = None,
    headers: dict[str, str] | None = None,
) -> Response:
    """Return the view as JSON with its ETag, or 304 if the client has it already."""
    body = view.model_dump_json().encode()
    etag = etag or f'"{hashlib.sha256(body).hexdigest()[:32]}"'
    headers = headers or {}
    if request.method == "GET" and matches(request, etag):
        return not_modified(etag, headers)
    headers = _cached(etag) | headers
    return Response(body, status, headers=headers, media_type="application/json")


def not_modified(etag: str, headers: dict[str, str]) -> Response:
    """Return 304: the client has it already."""
    return Response(status_code=304, headers=_cached(etag) | headers)


def _cached(etag: str) -> dict[str, str]:
    return {"ETag": etag, "Cache-Control": "private, no-cache"}
