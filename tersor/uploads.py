"""Streams a file as multipart/form-data in constant memory, its SHA-256 computed on the way."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from tersor.errors import ConfigurationError, FileChanged

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes of the whole file."""

CHUNK_BYTES = 1 << 20


class FileUpload:
    """A multipart body of text fields, one file, and last its `sha256`.

    The digest comes after the file, so that the file is read once and the service can tell
    whether it got the very bytes that were read. Iterating opens the file anew.
    """

    def __init__(
        self, path: Path, fields: Mapping[str, str], progress: Progress | None = None
    ) -> None:
        if not path.is_file():
            raise ConfigurationError(f"There is no file {str(path)!r}.", code="file_not_found")
        self._path = path
        self._progress = progress
        self._size_bytes = path.stat().st_size
        self._boundary = secrets.token_hex(16)
        head = b"".join(
            self._part(f'name="{name}"') + value.encode() + b"\r\n"
            for name, value in fields.items()
        )
        file_name = path.name.replace('"', "%22").replace("\r", "%0D").replace("\n", "%0A")
        self._head = head + self._part(
            f'name="file"; filename="{file_name}"', "Content-Type: application/octet-stream\r\n"
        )
        self._between = b"\r\n" + self._part('name="sha256"')
        self._tail = f"\r\n--{self._boundary}--\r\n".encode()

    @property
    def headers(self) -> dict[str, str]:
        """Content-Type and Content-Length of the body."""
        length = len(self._head) + self._size_bytes + len(self._between) + 64 + len(self._tail)
        return {
            "Content-Type": f"multipart/form-data; boundary={self._boundary}",
            "Content-Length": str(length),
        }

    def __iter__(self) -> Iterator[bytes]:
        yield self._head
        digest = hashlib.sha256()
        done = 0
        with self._path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != self._size_bytes:
                raise self._changed()
            while chunk := file.read(CHUNK_BYTES):
                done += len(chunk)
                if done > self._size_bytes:
                    raise self._changed()
                digest.update(chunk)
                yield chunk
                if self._progress is not None:
                    self._progress(done, self._size_bytes)
        if done != self._size_bytes:
            raise self._changed()
        yield self._between + digest.hexdigest().encode() + self._tail

    def _part(self, disposition: str, more: str = "") -> bytes:
        return (
            f"--{self._boundary}\r\nContent-Disposition: form-data; {disposition}\r\n{more}\r\n"
        ).encode(errors="surrogateescape")

    def _changed(self) -> FileChanged:
        return FileChanged(f"{str(self._path)!r} changed while it was sent; send it again.")
