"""Keeps blob rows and blob files in step: a file is there exactly while a row says so."""

from __future__ import annotations

import logging

from sqlalchemy import ColumnElement, delete, exists, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.orm import Session

from app.datasets.tables import Dataset
from app.db import Database, utc_now
from app.models.tables import Model
from app.storage import BlobStore, content_key
from app.storage_files import StagedBlob
from app.storage_tables import Blob

log = logging.getLogger(__name__)


def store_content(session: Session, store: BlobStore, staged: StagedBlob, sha256: str) -> None:
    """Lock the content's row, then move the staged file under its key.

    The lock lasts until the transaction ends, so no removal can come between the file and the
    row that will refer to it.
    """
    _lock(session, sha256, staged.size_bytes)
    store.publish(staged, content_key(sha256))


def release_content(database: Database, store: BlobStore, sha256: str) -> None:
    """Remove the content unless a model or dataset still refers to it."""
    with database.write() as session:
        _lock(session, sha256, 0)
        if session.scalar(select(_used(sha256))):
            return
        store.delete(content_key(sha256))
        session.execute(delete(Blob).where(Blob.sha256 == sha256))


def _lock(session: Session, sha256: str, size_bytes: int) -> None:
    insert = (sqlite_insert if session.get_bind().dialect.name == "sqlite" else postgresql_insert)(
        Blob
    )
    now = utc_now()
    session.execute(
        insert.values(sha256=sha256, size_bytes=size_bytes, touched_at=now).on_conflict_do_update(
            index_elements=[Blob.sha256], set_={"touched_at": now}
        )
    )


def _used(sha256: str) -> ColumnElement[bool]:
    return exists().where(Model.sha256 == sha256) | exists().where(Dataset.sha256 == sha256)
