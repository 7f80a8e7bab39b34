"""Blob storage: bytes under keys, streamed both ways. Uploads land in staging first.

Keys are `sha256/ab/<hex>` for uploads (stored once per content) and `jobs/<job>/<fence>/<name>`
for artifacts.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from urllib.parse import unquote, urlsplit

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


class BlobStore(Protocol):
    """What the service needs of a storage."""

    def stage(self) -> StagedBlob:
        """Return a new staged file."""

    def publish(self, staged: StagedBlob, key: str) -> None:
        """Move a finished staged file to `key`, durably; equal content may be there already."""

    def put_file(self, source: Path, key: str) -> tuple[int, str]:
        """Copy a local file to `key`; return its size and SHA-256."""

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        """Yield the bytes `[start, start + length)` in chunks."""

    def fetch(self, key: str, target: Path) -> None:
        """Make `target` a local, read-only file with the content; deleting the key keeps it."""

    def delete(self, key: str) -> None:
        """Remove a key; a missing one is no error."""

    def delete_tree(self, prefix: str) -> None:
        """Remove all keys under `prefix/`."""

    def remove_abandoned(self, older_than_s: float) -> int:
        """Remove staged files whose writers died; return how many."""

    def check(self) -> None:
        """Raise OSError unless the storage can be written."""


class LocalBlobStore:
    """Blobs in a folder. Publishing is a rename, fetching a hard link: no bytes are copied."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / "staging"
        self._staging.mkdir(parents=True, exist_ok=True, mode=0o700)

    def stage(self) -> StagedBlob:
        try:
            return StagedBlob(self._staging / secrets.token_hex(16))
        except OSError as error:
            raise_if_full(error)
            raise

    def publish(self, staged: StagedBlob, key: str) -> None:
        target = self._path(key)
        try:
            target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            staged.path.chmod(0o400)
            staged.path.replace(target)
            _sync_folder(target.parent)
        except OSError as error:
            raise_if_full(error)
            raise

    def put_file(self, source: Path, key: str) -> tuple[int, str]:
        with self.stage() as staged, source.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                staged.write(chunk)
            sha256 = staged.finish()
            self.publish(staged, key)
            return staged.size_bytes, sha256

    def read(self, key: str, start: int = 0, length: int | None = None) -> Iterator[bytes]:
        with self._path(key).open("rb") as file:
            file.seek(start)
            left = length
            while left is None or left > 0:
                chunk = file.read(CHUNK_BYTES if left is None else min(CHUNK_BYTES, left))
                if not chunk:
                    return
                if left is not None:
                    left -= len(chunk)
                yield chunk

    def fetch(self, key: str, target: Path) -> None:
        source = self._path(key)
        try:
            target.hardlink_to(source)
        except OSError as error:
            if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP):
                raise
            shutil.copyfile(source, target)  # another file system, or one without links

    def delete(self, key: str) -> None:
        self._path(key).unlink(missing_ok=True)

    def delete_tree(self, prefix: str) -> None:
        folder = self._path(prefix)
        if folder.exists():
            shutil.rmtree(folder)

    def remove_abandoned(self, older_than_s: float) -> int:
        removed = 0
        for path in self._staging.iterdir():
            try:
                with path.open("rb") as file:
                    # the age spares a file just opened, whose writer is about to lock it
                    if time.time() - path.stat().st_mtime < older_than_s:
                        continue
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink()
                    removed += 1
            except (FileNotFoundError, BlockingIOError):
                continue  # published or removed meanwhile; its writer lives
        return removed

    def check(self) -> None:
        with self.stage() as staged:
            staged.write(b"ok")
            staged.finish()

    def _path(self, key: str) -> Path:
        parts = key.split("/")
        if any(part in ("", ".", "..") or "\0" in part for part in parts):
            raise ValueError("not a storage key")
        return self.root.joinpath(*parts)


def content_key(sha256: str) -> str:
    """Return the key of content-addressed bytes."""
    return f"sha256/{sha256[:2]}/{sha256}"


def artifact_prefix(job_id: str, fence: int) -> str:
    """Return the folder of what one attempt of a job made."""
    return f"jobs/{job_id}/{fence}"


def open_store(url: str) -> BlobStore:
    """Return the storage for a `file:///folder` URL."""
    parts = urlsplit(url)
    if parts.scheme != "file":
        raise ValueError(f"storage URL must be file:///folder, not {parts.scheme}://")
    return LocalBlobStore(Path(unquote(parts.path)))


def raise_if_full(error: OSError) -> None:
    """Raise StorageFull if the error says that the disk or quota is used up."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        raise StorageFull(
            "The server has no room left; nothing was stored. Delete models, datasets or jobs, "
            "or ask the operator for space, then try again."
        ) from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
