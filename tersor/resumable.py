"""Uploads large files by tus (https://tus.io): what has arrived is not sent again after a cut.

Not after the end of this process either: see `tersor.upload_notes`. The whole is checked by the
SHA-256 of what was read, which goes along with the request that makes a model or dataset of it.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tersor.errors import (
    ApiError,
    Conflict,
    FileChanged,
    NotFound,
    ServerError,
    TransportError,
    Unprocessable,
)
from tersor.transport import Transport, path_of
from tersor.upload_notes import UploadNote
from tersor.uploads import CHUNK_BYTES, Progress

FROM_BYTES = 64 * 2**20
"""Smaller files are sent in one request."""

_PIECE_BYTES = 32 * 2**20  # of one request; a service that is killed has kept the earlier ones
_PATIENCE_S = 120.0
_BEGINNINGS = 3
_VERSION = {"Tus-Resumable": "1.0.0"}
_GONE = 410
# stalled, moved on, held by a connection that is dead, too many requests
_PASSING = frozenset({408, 409, 423, 429})
_NO_ROOM = 507


def upload(
    transport: Transport,
    kind_path: str,
    path: Path,
    fields: dict[str, Any],
    progress: Progress | None,
) -> dict[str, Any]:
    """Send a file, going on with what was sent before, and return what the service made of it.

    Args:
        transport: The service.
        kind_path: Where the thing is made: `/v1/models` or `/v1/datasets`.
        path: The file.
        fields: Of the thing: name, labels, inputs.
        progress: Called with bytes that have been sent and bytes in all.

    Raises:
        FileChanged: The file changed while it was sent.
        TransportError: For two minutes nothing got through; done again, it goes on from there.
        ApiError: The service refused.
    """
    source = _Source(path, progress)
    note: UploadNote | None = UploadNote(transport.url, path)
    upload_id = note.read() if note else None
    for left in reversed(range(_BEGINNINGS)):
        if upload_id is None:
            upload_id = _begin(transport, source)
            if note:
                note.write(upload_id)
        try:
            made = _finish(transport, kind_path, upload_id, source, fields)
        except ApiError as error:
            if error.code == "upload_taken_over":
                note = None  # another process goes on with it: this one sends its own
            elif not _is_gone(error):
                if isinstance(error, Unprocessable) and error.code != "invalid_request":
                    _give_up(transport, upload_id, note)  # the file is not what it should be
                raise
            if not left:
                raise
            upload_id = None
        else:
            if note:
                note.remove()
            return made
    raise AssertionError("unreachable: the last beginning returns or raises")


class _Source:
    """The file, its digest taken as it is read."""

    def __init__(self, path: Path, progress: Progress | None) -> None:
        self.path = path
        self._facts = path.stat()
        self.size_bytes = self._facts.st_size
        self._progress = progress
        self._digest = hashlib.sha256()
        self._hashed_bytes = 0

    def read(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from `start` to `end`, and tell how far it has come."""
        self._hash_up_to(start)
        for at, chunk in self._chunks(start, end):
            self._take(at, chunk)
            yield chunk
            self.tell(at + len(chunk))

    def tell(self, done_bytes: int) -> None:
        """Tell how far it has come."""
        if self._progress is not None:
            self._progress(done_bytes, self.size_bytes)

    def digest(self) -> str:
        """Return the SHA-256 of the whole file."""
        self._hash_up_to(self.size_bytes)
        return self._digest.hexdigest()

    def _hash_up_to(self, end: int) -> None:
        for at, chunk in self._chunks(self._hashed_bytes, end):
            self._take(at, chunk)

    def _take(self, at: int, chunk: bytes) -> None:
        new = chunk[self._hashed_bytes - at :]  # what is sent again was hashed before
        self._digest.update(new)
        self._hashed_bytes += len(new)

    def _chunks(self, start: int, end: int) -> Iterator[tuple[int, bytes]]:
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end:
                chunk = file.read(min(CHUNK_BYTES, end - start))
                now = os.fstat(file.fileno())
                told = (now.st_size, now.st_mtime_ns)
                if not chunk or told != (self.size_bytes, self._facts.st_mtime_ns):
                    raise FileChanged(
                        f"{str(self.path)!r} changed while it was sent; send it again."
                    )
                yield start, chunk
                start += len(chunk)


def _begin(transport: Transport, source: _Source) -> str:
    name = base64.b64encode(source.path.name.encode(errors="replace")).decode()
    headers = {
        **_VERSION,
        "Upload-Length": str(source.size_bytes),
        "Upload-Metadata": f"filename {name}",
    }
    upload_id: str = transport.create("/v1/uploads", headers=headers).json()["id"]
    return upload_id


def _finish(
    transport: Transport, kind_path: str, upload_id: str, source: _Source, fields: dict[str, Any]
) -> dict[str, Any]:
    """Send what is missing, and have a model or dataset made of it."""
    try:
        _send(transport, path_of("uploads", upload_id), source)
    except ApiError as error:
        # it may be gone since it became a file, of which the answer was lost: the key will tell
        if not _is_gone(error):
            raise
    body = {**fields, "upload_id": upload_id, "sha256": source.digest()}
    answer = transport.create(
        kind_path, body, key=upload_id, timeout_s=transport.checking_timeout_s
    )
    made: dict[str, Any] = answer.json()
    return made


def _send(transport: Transport, path: str, source: _Source) -> None:
    moved_at, furthest, tries = time.monotonic(), -1, 0
    while True:
        try:
            offset = int(transport.head(path).headers["Upload-Offset"])
            while True:
                source.tell(offset)
                if offset > furthest:
                    moved_at, furthest, tries = time.monotonic(), offset, 0
                if offset >= source.size_bytes:
                    return
                offset = _send_piece(transport, path, source, offset)
        except (TransportError, ApiError) as error:
            if not _may_pass(error):
                raise
            if time.monotonic() - moved_at > _PATIENCE_S:
                raise TransportError(
                    f"The upload to {transport.url} was cut again and again; do it again to go on "
                    f"from {max(0, furthest)} bytes.",
                    code="connection_lost",
                    sent=True,
                ) from error
            transport.pause(tries)
            tries += 1


def _send_piece(transport: Transport, path: str, source: _Source, offset: int) -> int:
    end = min(offset + _PIECE_BYTES, source.size_bytes)
    headers = {
        **_VERSION,
        "Upload-Offset": str(offset),
        "Content-Length": str(end - offset),
        "Content-Type": "application/offset+octet-stream",
    }
    answer = transport.append(path, lambda: source.read(offset, end), headers)
    return int(answer.headers["Upload-Offset"])


def _give_up(transport: Transport, upload_id: str, note: UploadNote | None) -> None:
    if note:
        note.remove()
    with contextlib.suppress(ApiError, TransportError):  # why it was refused matters more
        transport.delete(path_of("uploads", upload_id))


def _may_pass(error: TransportError | ApiError) -> bool:
    if isinstance(error, TransportError):
        return True
    if isinstance(error, ServerError):
        return error.status != _NO_ROOM
    return error.status in _PASSING and error.code != "upload_taken_over"


def _is_gone(error: ApiError) -> bool:
    """Whether there is no such upload, or its key belongs to a thing made otherwise."""
    if isinstance(error, NotFound) or error.status == _GONE:
        return True
    if isinstance(error, Conflict):
        return error.code == "idempotency_conflict"
    return error.code == "upload_not_found"
