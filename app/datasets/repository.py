"""Queries on datasets."""

from __future__ import annotations

from typing import Literal

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.errors import NotFound
from app.fields import is_id

Lock = Literal["share", "update"]


def get_dataset(
    session: Session, project_id: str, dataset_id: str, *, lock: Lock | None = None
) -> Dataset:
    """Return the project's dataset, locked if asked for.

    Raises:
        NotFound: also for another project's.
    """
    dataset = find_dataset(session, project_id, dataset_id, lock=lock)
    if dataset is None:
        raise NotFound("There is no such dataset.")
    return dataset


def find_dataset(
    session: Session, project_id: str, dataset_id: str, *, lock: Lock | None = None
) -> Dataset | None:
    """Return the project's dataset or None.

    `lock` lasts until the commit: `share` holds off its removal, `update` everybody. (On SQLite
    a write has the whole database to itself anyway.)
    """
    if not is_id(dataset_id, "dst"):
        return None
    query = select(Dataset).where(Dataset.id == dataset_id, Dataset.project_id == project_id)
    if lock is not None:
        query = query.with_for_update(read=lock == "share")
    return session.scalar(query)


def list_datasets(
    session: Session, project_id: str, limit: int, after: str | None
) -> list[Dataset]:
    """Return up to `limit` datasets, newest first."""
    query = select(Dataset).where(Dataset.project_id == project_id)
    if after is not None:
        query = query.where(Dataset.id < after)
    return list(session.scalars(query.order_by(Dataset.id.desc()).limit(limit)))
