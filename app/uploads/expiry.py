"""Removes uploads that waited too long for their next piece, and parts without a row."""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import delete, select

from app.db import Database, utc_now
from app.storage import BlobStore
from app.storage_files import PartBusy
from app.uploads import repository
from app.uploads.tables import PartialUpload

_ROWS_AT_ONCE = 200
_PARTS_KEPT_S = 3600.0
"""Spares parts whose row is about to be committed."""


def remove_expired(database: Database, store: BlobStore) -> int:
    """Remove what has expired; return how many uploads that were. One being written is spared."""
    with database.read() as session:
        expired = repository.list_expired(session, _ROWS_AT_ONCE)
    removed = 0
    for upload_id in expired:
        with suppress(PartBusy), database.write() as session:
            gone = session.scalar(
                delete(PartialUpload)
                .where(PartialUpload.id == upload_id, PartialUpload.expires_at <= utc_now())
                .returning(PartialUpload.id)
            )
            if gone is not None:
                store.remove_part(upload_id)  # busy: the row comes back with the rollback
                removed += 1
    return removed


def remove_orphans(database: Database, store: BlobStore) -> int:
    """Remove parts that no row knows, left by a crash; return how many."""
    names = store.list_parts(_PARTS_KEPT_S)
    if not names:
        return 0
    with database.read() as session:
        known = set(session.scalars(select(PartialUpload.id)))
    orphans = [name for name in names if name not in known]
    for name in orphans:
        with suppress(PartBusy):
            store.remove_part(name)
    return len(orphans)
