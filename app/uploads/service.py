"""Beginning and removing uploads, and making files of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

from sqlalchemy import delete

from app.audit.repository import record
from app.db import Database, utc_now
from app.errors import Conflict, FieldError, Gone, Locked, NotFound, StorageFull, Unprocessable
from app.idempotency.answers import keep_answer
from app.ids import new_id
from app.limits.quota import check_room
from app.settings import LimitSettings
from app.storage import BlobStore
from app.storage_files import PartBusy, StagedBlob
from app.uploads import repository
from app.uploads.tables import PartialUpload

_OPEN_MAX = 1000


def create_upload(
    database: Database,
    store: BlobStore,
    project_id: str,
    size_bytes: int,
    metadata: dict[str, str],
    limits: LimitSettings,
) -> PartialUpload:
    """Begin an upload of so many bytes.

    Raises:
        StorageFull: so many do not fit.
        Conflict: `too_many_uploads`, `project_full`.
    """
    if size_bytes > store.free_bytes():
        raise StorageFull(
            "The server has no room for a file of this size. Delete models, datasets or jobs, or "
            "ask the operator for space, then try again."
        )
    now = utc_now()
    upload = PartialUpload(
        id=new_id("upl"),
        project_id=project_id,
        size_bytes=size_bytes,
        offset_bytes=0,
        upload_metadata=metadata,
        created_at=now,
        expires_at=now + timedelta(seconds=limits.upload_expires_s),
    )
    with database.write() as session:
        if repository.count_uploads(session, project_id) >= _OPEN_MAX:
            raise Conflict(
                f"The project has {_OPEN_MAX} unfinished uploads. Finish or delete some.",
                code="too_many_uploads",
            )
        check_room(session, project_id, size_bytes, with_uploads=True)
        session.add(upload)
        session.flush()
        store.create_part(upload.id)
        record(session, "upload.create", project_id, upload.id)
        keep_answer(session, upload)
    return upload


def remove_upload(database: Database, store: BlobStore, project_id: str, upload_id: str) -> None:
    """Remove an upload and its bytes.

    Raises:
        Locked: somebody writes to it.
    """
    with database.write() as session:
        repository.find_upload(session, project_id, upload_id)
        session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
        record(session, "upload.delete", project_id, upload_id)
        try:
            store.remove_part(upload_id)
        except PartBusy as error:
            raise Locked("Another request writes to this upload. Try again.") from error


@contextmanager
def take_upload(
    database: Database, store: BlobStore, project_id: str, upload_id: str
) -> Iterator[StagedBlob]:
    """Yield a whole upload as a staged file; it is gone afterwards unless something is raised.

    Raises:
        Unprocessable: `upload_not_found`, `upload_incomplete`.
        Locked: somebody else makes something of it.
    """
    with database.read() as session:
        try:
            upload = repository.get_upload(session, project_id, upload_id)
        except (NotFound, Gone) as error:
            raise _refuse("upload_not_found", error.detail) from error
    if upload.offset_bytes != upload.size_bytes:
        raise _refuse(
            "upload_incomplete",
            f"{upload.offset_bytes} of {upload.size_bytes} bytes have arrived; send the rest.",
        )
    try:
        staged = store.stage_part(upload_id)
    except PartBusy as error:
        raise Locked("Another request makes something of this upload. Try again.") from error
    except FileNotFoundError as error:
        raise _refuse("upload_not_found", "The upload became a file meanwhile.") from error
    with staged:
        if staged.size_bytes != upload.size_bytes:
            raise Conflict("The upload is being written. Try again.", code="upload_incomplete")
        yield staged
    remove_taken(database, store, upload_id)


def remove_taken(database: Database, store: BlobStore, upload_id: str) -> None:
    """Forget an upload that became a file. A crash before this leaves it to its expiry."""
    with database.write() as session:
        session.execute(delete(PartialUpload).where(PartialUpload.id == upload_id))
    store.remove_part(upload_id)


def _refuse(code: str, detail: str) -> Unprocessable:
    return Unprocessable(detail, code=code, errors=[FieldError("/upload_id", detail)])
