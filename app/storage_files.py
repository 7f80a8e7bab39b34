"""Files that are being written: whole ones, and those that arrive piece by piece."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from pathlib import Path
from types import TracebackType
from typing import IO, BinaryIO, Self

from app.errors import StorageFull

CHUNK_BYTES = 2**20


class StagedBlob:
    """A file being written: feed it chunks, then `BlobStore.publish` it under a key.

    Leaving the context removes it unless it was published, so a broken upload leaves nothing. The
    lock on it tells `remove_abandoned` that its writer lives.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.size_bytes = 0
        self._hash = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")
        fcntl.flock(self._file, fcntl.LOCK_EX)

    def write(self, chunk: bytes | bytearray | memoryview) -> None:
        """Append bytes.

        Raises:
            StorageFull: the disk has no room.
        """
        try:
            self._file.write(chunk)
        except OSError as error:
            raise_if_full(error)
            raise
        self._hash.update(chunk)
        self.size_bytes += len(chunk)

    def finish(self) -> str:
        """Flush to disk and return the SHA-256 in hex."""
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise_if_full(error)
            raise
        return self._hash.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._file.close()
        except OSError as close_error:
            raise_if_full(close_error)
            raise
        finally:
            self.path.unlink(missing_ok=True)


class PartBusy(Exception):
    """Somebody else has the part open."""


class PartFile:
    """One part, open and locked: nobody else writes, takes or removes it meanwhile."""

    def __init__(self, path: Path, *, create: bool = False) -> None:
        try:
            # unbuffered: what could not be written must not be tried again by a later call
            self._file = path.open("xb" if create else "r+b", buffering=0)
        except OSError as error:
            raise_if_full(error)
            raise
        try:
            lock(self._file)
        except BaseException:
            self._file.close()
            raise

    def cut(self, size_bytes: int) -> None:
        """Drop what lies beyond; the next write goes there."""
        self._file.truncate(size_bytes)
        self._file.seek(size_bytes)

    def write(self, chunk: bytes) -> None:
        """Append bytes.

        Raises:
            StorageFull: the disk has no room.
        """
        left = memoryview(chunk)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:
            raise_if_full(error)
            raise

    def sync(self) -> None:
        """Return once all that was written is on the disk.

        Raises:
            StorageFull: the disk has no room.
        """
        try:
            os.fdatasync(self._file.fileno())
        except OSError as error:
            raise_if_full(error)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()


class LinkedBlob(StagedBlob):
    """A finished part as a staged file: another name for the same bytes, which nobody copies.

    The lock on it is the part's own.
    """

    def __init__(self, part: Path, link: Path) -> None:
        self.path = link
        self._hash = hashlib.sha256()
        self._file = part.open("rb")
        try:
            lock(self._file)
            link.hardlink_to(part)
        except BaseException:
            self._file.close()
            raise
        self.size_bytes = part.stat().st_size

    def finish(self) -> str:
        """Read the file and return its SHA-256 in hex."""
        os.fsync(self._file.fileno())
        while chunk := self._file.read(CHUNK_BYTES):
            self._hash.update(chunk)
        return self._hash.hexdigest()


def lock(file: IO[bytes]) -> None:
    """Lock a part until the file is closed.

    Raises:
        PartBusy: somebody else has it.
        FileNotFoundError: it was removed before we had the lock.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise PartBusy from error
    if os.fstat(file.fileno()).st_nlink == 0:
        raise FileNotFoundError("the part was removed")


def raise_if_full(error: OSError) -> None:
    """Raise StorageFull if the error says that the disk or quota is used up."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StorageFull(
            "The server has no room left; nothing was stored. Delete models, datasets or jobs, "
            "or ask the operator for space, then try again."
        ) from error
