"""Bodies of keys."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import BaseModel, Field

from app.fields import FutureTime, Name, ProjectId
from app.responses import PageQuery

Scope = Literal["read", "write", "admin"]


class KeyCreate(BaseModel):
    """A new key. It can have no scope that the asking key lacks."""

    model_config = {"extra": "forbid", "use_attribute_docstrings": True}

    name: Name = "key"
    scopes: Annotated[list[Scope], Field(min_length=1, max_length=3)] = ["read", "write"]
    project_id: ProjectId | None = None
    """Another project; only a key with the scope `admin` may ask for that."""
    expires_at: FutureTime | None = None
    """When it stops to work; at the latest when the asking key does."""


class KeyView(BaseModel):
    """A key, without its secret."""

    model_config = {"from_attributes": True}

    id: str
    project_id: str
    name: str
    prefix: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None


class KeyCreated(KeyView):
    """A new key, with its secret: it is shown this once."""

    key: str


class KeyKept(KeyView):
    """What is kept of the answer with a new key: not its secret, but what that is made of."""

    salt: str


class KeyQuery(PageQuery):
    """Which keys."""

    project_id: ProjectId | None = None
    """Another project's; only for a key with the scope `admin`."""
