"""Blob storage: bytes under keys, streamed both ways. Uploads land in staging first.

Keys are `sha256/ab/<hex>` for uploads (stored once per content) and `jobs/<job>/<fence>/<name>`
for artifacts.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from app.storage_files import CHUNK_BYTES, LinkedBlob, PartFile, StagedBlob, raise_if_full


@dataclass(frozen=True)
class StoredFile:
    """One file in the storage."""

    key: str
    size_bytes: int
    age_s: float


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

    def create_part(self, name: str) -> None:
        """Make an empty part: a file that arrives piece by piece."""

    def open_part(self, name: str) -> PartFile:
        """Return the part, locked.

        Raises:
            PartBusy: somebody else has it open.
            FileNotFoundError: it is not there.
        """

    def stage_part(self, name: str) -> StagedBlob:
        """Return a whole part as a staged file; the part stays. Raises like `open_part`."""

    def remove_part(self, name: str) -> None:
        """Remove a part; a missing one is no error. Raises PartBusy."""

    def list_parts(self, older_than_s: float) -> list[str]:
        """Return the names of parts that nothing was written to for so long."""

    def list_files(self) -> Iterator[StoredFile]:
        """Yield what lies under keys; not what is being written."""

    def has(self, key: str) -> bool:
        """Return whether something lies under the key."""

    def free_bytes(self) -> int:
        """Return how much room there is."""

    def check(self) -> None:
        """Raise OSError unless the storage can be written."""


class LocalBlobStore:
    """Blobs in a folder. Publishing is a rename, fetching a hard link: no bytes are copied."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._staging = root / "staging"
        self._parts = root / "parts"
        for folder in (self._staging, self._parts):
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)

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

    def create_part(self, name: str) -> None:
        with PartFile(self._part(name), create=True):
            _sync_folder(self._parts)

    def open_part(self, name: str) -> PartFile:
        return PartFile(self._part(name))

    def stage_part(self, name: str) -> StagedBlob:
        return LinkedBlob(self._part(name), self._staging / secrets.token_hex(16))

    def remove_part(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError), self.open_part(name):
            self._part(name).unlink()

    def list_parts(self, older_than_s: float) -> list[str]:
        before_s = time.time() - older_than_s
        names = []
        for path in self._parts.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime < before_s:
                    names.append(path.name)
        return names

    def list_files(self) -> Iterator[StoredFile]:
        for top in ("sha256", "jobs"):
            for path in (self.root / top).rglob("*"):
                with contextlib.suppress(FileNotFoundError):
                    if path.is_file():
                        facts = path.stat()
                        key = path.relative_to(self.root).as_posix()
                        # linking a file or renaming it moves the time that is taken here
                        yield StoredFile(key, facts.st_size, time.time() - facts.st_ctime)

    def has(self, key: str) -> bool:
        return self._path(key).is_file()

    def free_bytes(self) -> int:
        return shutil.disk_usage(self.root).free

    def check(self) -> None:
        with self.stage() as staged:
            staged.write(b"ok")
            staged.finish()

    def _part(self, name: str) -> Path:
        if "/" in name or name in ("", ".", ".."):
            raise ValueError("not a part's name")
        return self._parts / name

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


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
