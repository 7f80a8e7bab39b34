"""Queries on keys."""

from __future__ import annotations

import base64
import hashlib
import hmac
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import ColumnElement, and_, bindparam, func, or_, select
from sqlalchemy.orm import Session

from app.auth.tables import ApiKey
from app.db import UtcDateTime, utc_now
from app.ids import new_id
from app.projects.tables import Project

TOKEN_PREFIX = "tsr_"
SCOPES = ("read", "write", "admin")


def digest(token: str) -> str:
    """Return the form in which a token is stored; it is random, so a plain hash is enough."""
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).hexdigest()


def derive_token(asking_token: str, salt: str) -> str:
    """Return the token that a key makes of a random salt.

    The salt may be kept, to make the same token once more: it is nothing without the asking token,
    which is stored nowhere.
    """
    made = hmac.digest(asking_token.encode(), f"new key {salt}".encode(), "sha256")
    return TOKEN_PREFIX + base64.urlsafe_b64encode(made).decode().rstrip("=")


def create_key(
    session: Session,
    project_id: str,
    name: str,
    scopes: Sequence[str],
    expires_at: datetime | None = None,
    token: str | None = None,
) -> tuple[ApiKey, str]:
    """Insert a key; return it and its token, which is stored nowhere."""
    token = token or TOKEN_PREFIX + secrets.token_urlsafe(32)
    key = ApiKey(
        id=new_id("key"),
        project_id=project_id,
        name=name,
        prefix=token[:10],
        token_sha256=digest(token),
        scopes=[scope for scope in SCOPES if scope in scopes],
        created_at=utc_now(),
        expires_at=expires_at,
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


@dataclass(frozen=True)
class Opened:
    """A key that opens the door, and what its project may."""

    key_id: str
    project_id: str
    scopes: frozenset[str]
    expires_at: datetime | None
    requests_per_s_max: int | None


def find_key(session: Session, token: str) -> Opened | None:
    """Return the key of a token, unless it was revoked or has expired."""
    asked = {"digest": digest(token), "now": utc_now()}
    found = session.execute(_BY_TOKEN, asked).one_or_none()
    if found is None:
        return None
    key_id, project_id, scopes, expires_at, requests_per_s_max = found
    return Opened(key_id, project_id, frozenset(scopes), expires_at, requests_per_s_max)


def is_live(session: Session, key_id: str) -> bool:
    """Return whether the key opens the door still."""
    return session.scalar(select(ApiKey.id).where(ApiKey.id == key_id, _lives())) is not None


def count_live_keys(session: Session) -> int:
    """Return how many keys still open the door."""
    return session.scalar(select(func.count(ApiKey.id)).where(_lives())) or 0


def _lives(now: Any = None) -> ColumnElement[bool]:
    return and_(
        ApiKey.revoked_at.is_(None),
        or_(ApiKey.expires_at.is_(None), ApiKey.expires_at > (utc_now() if now is None else now)),
    )


# made once, since each request asks it: making it takes longer than asking it; and columns instead
# of objects, which take twice as long
_BY_TOKEN = (
    select(
        ApiKey.id, ApiKey.project_id, ApiKey.scopes, ApiKey.expires_at, Project.requests_per_s_max
    )
    .join(Project, Project.id == ApiKey.project_id)
    .where(ApiKey.token_sha256 == bindparam("digest"), _lives(bindparam("now", type_=UtcDateTime)))
)
