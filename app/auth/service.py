"""What may be done with keys and projects, and by whom."""

from __future__ import annotations

from app.auth import repository
from app.auth.principal import Principal
from app.auth.schemas import KeyCreate
from app.auth.tables import ApiKey, Project
from app.db import Database, utc_now
from app.errors import FieldError, Forbidden, NotFound, Unprocessable
from app.fields import is_id


def create_key(database: Database, principal: Principal, request: KeyCreate) -> tuple[ApiKey, str]:
    """Make a key for the principal's project or, for an admin, another one."""
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
        return repository.create_key(session, project_id, request.name, request.scopes)


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
        if key is None or (
            key.project_id != principal.project_id and "admin" not in principal.scopes
        ):
            raise NotFound("There is no such key.")
        if set(key.scopes) - principal.scopes:
            raise Forbidden("A key cannot revoke one that may do more than itself.")
        key.revoked_at = key.revoked_at or utc_now()


def _project(principal: Principal, asked: str | None) -> str:
    if asked is None or asked == principal.project_id:
        return principal.project_id
    if "admin" not in principal.scopes:
        raise Forbidden("Only a key with the scope 'admin' may manage another project's keys.")
    return asked
