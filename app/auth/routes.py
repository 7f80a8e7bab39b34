"""Keys: make, list, revoke."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from app.auth import service
from app.auth.principal import Reader, Writer
from app.auth.schemas import KeyCreate, KeyCreated, KeyQuery, KeyView
from app.problems import BODY, GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, Page, json_answer, take_page
from app.state import services

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    status_code=201,
    response_model=KeyCreated,
    responses=document(BODY | GUARDED | {422: ["invalid_request", "project_not_found"]}),
)
def create_key(request: Request, principal: Writer, body: KeyCreate) -> Response:
    """Make a key; its secret is shown this once."""
    key, token = service.create_key(services(request).database, principal, body)
    view = KeyCreated(**KeyView.model_validate(key).model_dump(), key=token)
    return json_answer(request, view, status=201, headers={"Cache-Control": "no-store"})


@router.get(
    "",
    response_model=Page[KeyView],
    responses=document(GUARDED | INVALID) | NOT_MODIFIED,
)
def list_keys(request: Request, principal: Reader, query: Annotated[KeyQuery, Query()]) -> Response:
    """List the project's keys, newest first, without their secrets."""
    keys = service.list_keys(
        services(request).database, principal, query.project_id, query.limit + 1, query.after
    )
    views = [KeyView.model_validate(key) for key in keys]
    return json_answer(request, take_page(views, query.limit))


@router.delete(
    "/{key_id}",
    status_code=204,
    responses=document(GUARDED | {404: ["not_found"], 422: ["invalid_request"]}),
)
def revoke_key(request: Request, principal: Writer, key_id: str) -> Response:
    """Revoke a key, at once and for good."""
    service.revoke_key(services(request).database, principal, key_id)
    return Response(status_code=204)
