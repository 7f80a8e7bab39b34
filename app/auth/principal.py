"""Who asks: the bearer token becomes a project and its scopes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

from fastapi import Depends, Request, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from app.audit.actor import actor_var
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
    expires_at: datetime | None = None

    def may_manage(self, project_id: str) -> bool:
        """Return whether the project is the key's own, or the key an admin's."""
        return project_id == self.project_id or "admin" in self.scopes


def require(scope: str) -> Callable[..., Principal]:
    """Return a dependency that yields the principal if its key has the scope."""

    def authenticate(
        request: Request,
        credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
    ) -> Principal:
        if credentials is None:
            raise Unauthorized("Send a key: Authorization: Bearer tsr_… (see `tersor keys`).")
        state = services(request)
        with state.database.read() as session:
            found = find_key(session, credentials.credentials)
        if found is None:
            raise Unauthorized(
                "This key is not known, was revoked or has expired. Make one: tersor keys create"
            )
        actor = actor_var.get()
        if actor is not None:
            actor.key_id, actor.project_id = found.key_id, found.project_id
        if found.requests_per_s_max is not None:
            state.rate_limiter.check(found.project_id, found.requests_per_s_max)
        if scope not in found.scopes:
            raise Forbidden(f"This key lacks the scope {scope!r}; use one that has it.")
        return Principal(found.key_id, found.project_id, found.scopes, found.expires_at)

    return authenticate


Reader = Annotated[Principal, Depends(require("read"))]
Writer = Annotated[Principal, Depends(require("write"))]
Admin = Annotated[Principal, Depends(require("admin"))]
