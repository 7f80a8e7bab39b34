"""What may be done with keys, and by whom."""

from __future__ import annotations

from datetime import datetime

from app.audit.repository import record
from app.auth import repository
from app.auth.principal import Principal
from app.auth.schemas import KeyCreate
from app.auth.tables import ApiKey
from app.db import Database, utc_now
from app.errors import FieldError, Forbidden, NotFound, Unprocessable
from app.fields import is_id
from app.idempotency.answers import keep_answer
from app.projects.tables import Project


def create_key(database: Database, principal: Principal, request: KeyCreate, token: str) -> ApiKey:
    """Make a key of the token for the principal's project or, for an admin, another one."""
    lacking = set(request.scopes) - principal.scopes
    if lacking:
        raise Forbidden(f"This key cannot give scopes that it lacks: {', '.join(sorted(lacking))}.")
    project_id = _project(principal, request.project_id)
    with database.write() as session:
        if session.get(Project, project_id) is None:
            raise Unprocessable(
                "There is no such project.",
                code="project_not_found",
                errors=[FieldError("/project_id", "There is no such project.")],
            )
        key, _ = repository.create_key(
            session, project_id, request.name, request.scopes, _expiry(principal, request), token
        )
        record(
            session, "key.create", project_id, key.id, name=key.name, scopes=key.scopes,
            expires_at=None if key.expires_at is None else key.expires_at.isoformat(),
        )  # fmt: skip
        keep_answer(session, key)
        return key


def list_keys(
    database: Database, principal: Principal, project_id: str | None, limit: int, after: str | None
) -> list[ApiKey]:
    """Return keys of the principal's project or, for an admin, another one."""
    with database.read() as session:
        return repository.list_keys(session, _project(principal, project_id), limit, after)


def revoke_key(database: Database, principal: Principal, key_id: str) -> None:
    """Revoke a key of the project; an admin may revoke any. Doing it twice is no error."""
    with database.write() as session:
        key = session.get(ApiKey, key_id) if is_id(key_id, "key") else None
        if key is None or not principal.may_manage(key.project_id):
            raise NotFound("There is no such key.")
        if set(key.scopes) - principal.scopes:
            raise Forbidden("A key cannot revoke one that may do more than itself.")
        if key.revoked_at is None:
            key.revoked_at = utc_now()
            record(session, "key.revoke", key.project_id, key.id)


def _expiry(principal: Principal, request: KeyCreate) -> datetime | None:
    """Return when the new key expires; a key cannot live on in one that it made."""
    if principal.expires_at is None:
        return request.expires_at
    if request.expires_at is not None and request.expires_at > principal.expires_at:
        raise Forbidden(
            f"This key expires at {principal.expires_at.isoformat()} and cannot make one that "
            "lives longer."
        )
    return request.expires_at or principal.expires_at


def _project(principal: Principal, asked: str | None) -> str:
    if asked is None:
        return principal.project_id
    if not principal.may_manage(asked):
        raise Forbidden("Only a key with the scope 'admin' may manage another project's keys.")
    return asked
