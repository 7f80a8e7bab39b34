"""Queries on unfinished uploads."""

from __future__ import annotations

from datetime import datetime, timedelta

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from app.db import utc_now
from app.errors import Gone, NotFound
from app.fields import is_id
from app.uploads.tables import PartialUpload


def find_upload(session: Session, project_id: str, upload_id: str) -> PartialUpload:
    """Return the project's upload, expired or not.

    Raises:
        NotFound: also for another project's.
    """
    upload = session.get(PartialUpload, upload_id) if is_id(upload_id, "upl") else None
    if upload is None or upload.project_id != project_id:
        raise NotFound("There is no such upload: it never was, was removed, or became a file.")
    return upload


def get_upload(session: Session, project_id: str, upload_id: str) -> PartialUpload:
    """Return the project's upload.

    Raises:
        NotFound: also for another project's.
        Gone: `upload_expired`.
    """
    upload = find_upload(session, project_id, upload_id)
    if upload.expires_at <= utc_now():
        raise Gone("The upload waited too long for its next piece. Begin a new one.")
    return upload


def list_uploads(
    session: Session, project_id: str, limit: int, after: str | None
) -> list[PartialUpload]:
    """Return up to `limit` uploads, newest first."""
    query = select(PartialUpload).where(PartialUpload.project_id == project_id)
    if after is not None:
        query = query.where(PartialUpload.id < after)
    return list(session.scalars(query.order_by(PartialUpload.id.desc()).limit(limit)))


def count_uploads(session: Session, project_id: str) -> int:
    """Return how many uploads of a project are not yet files."""
    query = select(func.count()).where(PartialUpload.project_id == project_id)
    return session.scalar(query) or 0


def save_offset(session: Session, upload_id: str, offset_bytes: int, expires_s: float) -> datetime:
    """Write how far the upload has come; return when it expires now."""
    expires_at = utc_now() + timedelta(seconds=expires_s)
    session.execute(
        update(PartialUpload)
        .where(PartialUpload.id == upload_id)
        .values(offset_bytes=offset_bytes, expires_at=expires_at)
        .execution_options(synchronize_session=False)
    )
    return expires_at


def list_expired(session: Session, limit: int) -> list[str]:
    """Return ids of uploads whose time is over."""
    query = select(PartialUpload.id).where(PartialUpload.expires_at <= utc_now()).limit(limit)
    return list(session.scalars(query))
