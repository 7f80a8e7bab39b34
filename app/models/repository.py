"""Queries on models."""

from __future__ import annotations

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.errors import NotFound
from app.fields import is_id
from app.models.tables import Model


def get_model(session: Session, project_id: str, model_id: str) -> Model:
    """Return the project's model.

    Raises:
        NotFound: also for another project's.
    """
    model = find_model(session, project_id, model_id)
    if model is None:
        raise NotFound("There is no such model.")
    return model


def find_model(
    session: Session, project_id: str, model_id: str, *, keep: bool = False
) -> Model | None:
    """Return the project's model or None; `keep` holds off its removal until the commit."""
    if not is_id(model_id, "mdl"):
        return None
    query = select(Model).where(Model.id == model_id, Model.project_id == project_id)
    if keep:
        query = query.with_for_update(read=True)
    return session.scalar(query)


def list_models(session: Session, project_id: str, limit: int, after: str | None) -> list[Model]:
    """Return up to `limit` models, newest first."""
    query = select(Model).where(Model.project_id == project_id)
    if after is not None:
        query = query.where(Model.id < after)
    return list(session.scalars(query.order_by(Model.id.desc()).limit(limit)))
