"""Takes the bytes of one request into an upload: constant memory, and nothing saved twice."""

from __future__ import annotations

import time
from datetime import datetime

import anyio
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.db import Database
from app.errors import ChecksumMismatch, Conflict, Gone, Locked, StorageFull, TooLarge
from app.settings import LimitSettings
from app.state import Services
from app.storage_files import CHUNK_BYTES, PartBusy, PartFile
from app.uploads import repository
from app.uploads.headers import Checksum
from app.uploads.tables import PartialUpload

SAVE_EVERY_BYTES = 32 * 2**20
SAVE_EVERY_S = 5.0


async def receive_piece(
    request: Request, state: Services, upload: PartialUpload, checksum: Checksum | None
) -> tuple[int, datetime]:
    """Append the request's body to the upload; return the new offset and when it expires.

    Whatever ends the request early, what has arrived counts, unless its checksum is still open.

    Raises:
        Conflict: `offset_mismatch`, another request went on from there.
        Locked: another process writes to it.
        Gone: its bytes are no longer there.
        TooLarge: more bytes than the upload is long.
        ChecksumMismatch: nothing of the piece counts.
        RequestTimeout, ClientDisconnect: the bytes stopped coming.
    """
    async with state.writers.enter(upload.id) as scope:
        try:
            part = await run_in_threadpool(state.store.open_part, upload.id)
        except PartBusy as error:
            raise Locked("Another request still writes to this upload. Try again.") from error
        except FileNotFoundError as error:
            raise Gone("The bytes of this upload are gone. Begin a new one.") from error
        piece = _Piece(state.database, part, upload, checksum, state.settings.limits)
        ended = False
        with part:
            await run_in_threadpool(piece.begin)
            try:
                with scope:
                    await piece.take(request)
                    ended = True
            finally:
                with anyio.CancelScope(shield=True):
                    await run_in_threadpool(piece.save_or_drop, ended)
        if not ended:
            raise Conflict("A later request took over this upload.", code="upload_taken_over")
        return piece.saved_bytes, piece.expires_at


class _Piece:
    def __init__(
        self,
        database: Database,
        part: PartFile,
        upload: PartialUpload,
        checksum: Checksum | None,
        limits: LimitSettings,
    ) -> None:
        self.saved_bytes = upload.offset_bytes
        self.expires_at = upload.expires_at
        self._database = database
        self._part = part
        self._upload = upload
        self._checksum = checksum
        self._expires_s = limits.upload_expires_s
        self._written_bytes = upload.offset_bytes
        self._saved_s = time.monotonic()
        self._waiting: list[bytes] = []

    def begin(self) -> None:
        """Look again, now that nobody else writes, and drop what was written but not saved."""
        with self._database.read() as session:
            now = session.get(PartialUpload, self._upload.id)
        if now is None:
            raise Gone("The upload was removed meanwhile.")
        if now.offset_bytes != self.saved_bytes:
            raise Conflict("Another request went on with this upload.", code="offset_mismatch")
        self._part.cut(self.saved_bytes)

    async def take(self, request: Request) -> None:
        """Write what comes, a good bite at a time, in a thread."""
        waiting_bytes = 0
        async for chunk in request.stream():
            self._waiting.append(chunk)
            waiting_bytes += len(chunk)
            if waiting_bytes >= CHUNK_BYTES:
                waiting_bytes = 0
                await run_in_threadpool(self._write)
        await run_in_threadpool(self._write)
        if self._checksum is not None and not self._checksum.fits():
            raise ChecksumMismatch("The piece arrived damaged and does not count. Send it again.")

    def save_or_drop(self, ended: bool) -> None:
        """Save what counts; without its checksum, a piece does not."""
        if ended or self._checksum is None:
            self._write()
            self._save()
        else:
            self._part.cut(self.saved_bytes)

    def _write(self) -> None:
        chunks, self._waiting = self._waiting, []
        for chunk in chunks:
            if self._written_bytes + len(chunk) > self._upload.size_bytes:
                raise TooLarge(
                    f"The upload was begun with Upload-Length: {self._upload.size_bytes}, and more "
                    "bytes come."
                )
            try:
                self._part.write(chunk)
            except StorageFull:  # what is there may be half a chunk
                self._part.cut(self._written_bytes)
                raise
            self._written_bytes += len(chunk)
            if self._checksum is not None:
                self._checksum.feed(chunk)
        unsaved_bytes = self._written_bytes - self.saved_bytes
        late = time.monotonic() - self._saved_s > SAVE_EVERY_S
        if self._checksum is None and (unsaved_bytes >= SAVE_EVERY_BYTES or late):
            self._save()

    def _save(self) -> None:
        if self._written_bytes == self.saved_bytes:
            return
        self._part.sync()
        with self._database.write() as session:
            self.expires_at = repository.save_offset(
                session, self._upload.id, self._written_bytes, self._expires_s
            )
        self.saved_bytes = self._written_bytes
        self._saved_s = time.monotonic()
