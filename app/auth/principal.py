"""Who asks: the bearer token becomes a project and its scopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.auth.repository import find_key
from app.errors import Forbidden, Unauthorized
from app.state import services

bearer = HTTPBearer(
    scheme_name="key", auto_error=False, description="A project's key: `Bearer tsr_…`."
)


@dataclass(frozen=True)
class Principal:
    """The key that a request came with."""

    key_id: str
    project_id: str
    scopes: frozenset[str]


def require(scope: str) -> Callable[..., Principal]:
    """Return a dependency that yields the principal if its key has the scope."""

    def authenticate(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    ) -> Principal:
        if credentials is None:
            raise Unauthorized("Send a key: Authorization: Bearer tsr_… (see `tersor keys`).")
        with services(request).database.read() as session:
            key = find_key(session, credentials.credentials)
        if key is None:
            raise Unauthorized("This key is not known or was revoked. Make one: tersor keys create")
        if scope not in key.scopes:
            raise Forbidden(f"This key lacks the scope {scope!r}; use one that has it.")
        return Principal(key.id, key.project_id, frozenset(key.scopes))

    return authenticate


Reader = Annotated[Principal, Depends(require("read"))]
Writer = Annotated[Principal, Depends(require("write"))]
Admin = Annotated[Principal, Depends(require("admin"))]
