"""Queries on models."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.fields import is_id
from app.models.tables import Model

Lock = Literal["share", "update"]


def get_model(
    session: Session, project_id: str, model_id: str, *, lock: Lock | None = None
) -> Model:
    """Return the project's model, locked if asked for.

    Raises:
        NotFound: also for another project's.
    """
    model = find_model(session, project_id, model_id, lock=lock)
    if model is None:
        raise NotFound("There is no such model.")
    return model


def find_model(
    session: Session, project_id: str, model_id: str, *, lock: Lock | None = None
) -> Model | None:
    """Return the project's model or None.

    `lock` lasts until the commit: `share` holds off its removal, `update` everybody. (On SQLite
    a write has the whole database to itself anyway.)
    """
    if not is_id(model_id, "mdl"):
        return None
    query = select(Model).where(Model.id == model_id, Model.project_id == project_id)
    if lock is not None:
        query = query.with_for_update(read=lock == "share")
    return session.scalar(query)


def list_models(session: Session, project_id: str, limit: int, after: str | None) -> list[Model]:
    """Return up to `limit` models, newest first."""
    query = select(Model).where(Model.project_id == project_id)
    if after is not None:
        query = query.where(Model.id < after)
    return list(session.scalars(query.order_by(Model.id.desc()).limit(limit)))
