"""Queries on projects and keys."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from app.auth.tables import ApiKey, Project
from app.db import utc_now
from app.errors import Conflict
from app.ids import new_id

TOKEN_PREFIX = "tsr_"
SCOPES = ("read", "write", "admin")


def digest(token: str) -> str:
    """Return the form in which a token is stored; it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def create_project(session: Session, name: str) -> Project:
    """Insert a project.

    Raises:
        Conflict: `name_taken`.
    """
    project = Project(id=new_id("prj"), name=name, created_at=utc_now())
    if session.scalar(select(Project.id).where(Project.name == name)):
        raise Conflict(f"There is a project named {name!r} already.", code="name_taken")
    session.add(project)
    try:
        session.flush()
    except IntegrityError as error:  # two at once, on PostgreSQL
        raise Conflict("There is a project of that name already.", code="name_taken") from error
    return project


def list_projects(session: Session, limit: int, after: str | None = None) -> list[Project]:
    """Return up to `limit` projects, newest first."""
    query = select(Project).order_by(Project.id.desc()).limit(limit)
    if after is not None:
        query = query.where(Project.id < after)
    return list(session.scalars(query))


def find_project(session: Session, id_or_name: str) -> Project | None:
    """Return the project with this id or name."""
    return session.scalar(
        select(Project).where((Project.id == id_or_name) | (Project.name == id_or_name))
    )


def create_key(
    session: Session, project_id: str, name: str, scopes: Sequence[str]
) -> tuple[ApiKey, str]:
    """Insert a key; return it and its token, which is stored nowhere."""
    token = TOKEN_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=token[:10],
        token_sha256=digest(token),
        scopes=[scope for scope in SCOPES if scope in scopes],
        created_at=utc_now(),
        revoked_at=None,
    )
    session.add(key)
    session.flush()
    return key, token


def list_keys(
    session: Session, project_id: str | None, limit: int, after: str | None = None
) -> list[ApiKey]:
    """Return up to `limit` keys, revoked ones too, newest first; None for all projects."""
    query = select(ApiKey).order_by(ApiKey.id.desc()).limit(limit)
    if project_id is not None:
        query = query.where(ApiKey.project_id == project_id)
    if after is not None:
        query = query.where(ApiKey.id < after)
    return list(session.scalars(query))


def find_key(session: Session, token: str) -> ApiKey | None:
    """Return the unrevoked key of a token."""
    return session.scalar(
        select(ApiKey).where(ApiKey.token_sha256 == digest(token), ApiKey.revoked_at.is_(None))
    )


def count_live_keys(session: Session) -> int:
    """Return how many keys still open the door."""
    return session.scalar(select(func.count(ApiKey.id)).where(ApiKey.revoked_at.is_(None))) or 0
