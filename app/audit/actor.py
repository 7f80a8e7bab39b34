"""Who makes the present request: filled in once its key is known, read by the audit log."""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass


@dataclass
class Actor:
    """One request; the middleware makes it, so that routes in other threads see the same."""

    request_id: str
    key_id: str | None = None
    project_id: str | None = None


actor_var: ContextVar[Actor | None] = ContextVar("actor", default=None)
