"""Keys: make, list, revoke."""

from __future__ import annotations

import secrets
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials
from sqlalchemy.orm import Session

from app.auth import service
from app.auth.principal import Reader, Writer, bearer
from app.auth.repository import derive_token
from app.auth.schemas import KeyCreate, KeyCreated, KeyKept, KeyQuery, KeyView
from app.auth.tables import ApiKey
from app.idempotency.answers import IdempotencyKey, answer_once
from app.problems import BODY, GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, Page, json_answer, take_page
from app.state import services

router = APIRouter(prefix="/v1/keys", tags=["keys"])


@router.post(
    "",
    status_code=201,
    response_model=KeyCreated,
    responses=document(
        BODY
        | GUARDED
        | {409: ["idempotency_conflict"], 422: ["invalid_request", "project_not_found"]}
    ),
)
def create_key(
    request: Request,
    principal: Writer,
    asking: Annotated[HTTPAuthorizationCredentials, Security(bearer)],
    body: KeyCreate,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """Make a key; its secret is shown in this answer alone."""
    database = services(request).database
    salt = secrets.token_hex(32)
    token = derive_token(asking.credentials, salt)

    def show(_session: Session, key: ApiKey) -> Response:
        kept = KeyKept(**KeyView.model_validate(key).model_dump(), salt=salt)
        return json_answer(request, kept, status=201)

    answer = answer_once(
        database,
        principal.project_id,
        idempotency_key,
        # only the very key that asked can make the same secret again
        [request.url.path, principal.key_id, body.model_dump(mode="json")],
        make=lambda: service.create_key(database, principal, body, token),
        show=show,
    )
    kept = KeyKept.model_validate_json(bytes(answer.body))
    view = KeyCreated(
        **kept.model_dump(exclude={"salt"}), key=derive_token(asking.credentials, kept.salt)
    )
    replayed = {
        name: value for name, value in answer.headers.items() if name == "idempotency-replayed"
    }
    return json_answer(request, view, status=201, headers={"Cache-Control": "no-store", **replayed})


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
