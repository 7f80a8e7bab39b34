"""Opens an uploaded zip with caution: what it claims is bounded before it is believed."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.errors import Unprocessable

MAX_DIRECTORY_BYTES = 64 * 2**20
MAX_ENTRIES = 100_000
_CHUNK_BYTES = 2**20
_END = b"PK\x05\x06"
_END_BYTES = 22
_END64 = b"PK\x06\x06"
_LOCATOR64 = b"PK\x06\x07"


@contextmanager
def open_archive(path: Path, what: str) -> Iterator[zipfile.ZipFile]:
    """Yield the archive; `what` names the upload in messages.

    Raises:
        Unprocessable: corrupt_archive, corrupt_entry, too_many_entries.
    """
    _check_directory(path, what)
    try:
        archive = zipfile.ZipFile(path)
    except (zipfile.BadZipFile, UnicodeError, NotImplementedError, struct.error, ValueError,
            EOFError) as error:  # fmt: skip
        raise corrupt_archive(what) from error
    with archive:
        if len(archive.infolist()) > MAX_ENTRIES:
            raise _too_many(what)
        if sum(info.compress_size for info in archive.infolist()) > path.stat().st_size:
            raise corrupt_archive(what)  # entries that overlap: a bomb for whoever reads them
        yield archive


def read_entry(archive: zipfile.ZipFile, name: str | zipfile.ZipInfo) -> Iterator[bytes]:
    """Yield an entry's bytes; its checksum has been verified when this ends.

    Raises:
        Unprocessable: `corrupt_entry`.
    """
    shown = name if isinstance(name, str) else name.filename
    try:
        with archive.open(name) as file:
            while chunk := file.read(_CHUNK_BYTES):
                yield chunk
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError, OSError,
            ValueError) as error:  # fmt: skip
        raise Unprocessable(
            f"The entry {shown!a} of the archive is damaged (its checksum or its packing is "
            "wrong); save the file again and upload the new one.",
            code="corrupt_entry",
        ) from error


def corrupt_archive(what: str) -> Unprocessable:
    """Return the error for an archive whose directory cannot be read."""
    return Unprocessable(
        f"The {what} is cut off or damaged: its directory, at the end, cannot be read. "
        "Upload it again; compare its SHA-256 to be sure.",
        code="corrupt_archive",
    )


def _too_many(what: str) -> Unprocessable:
    return Unprocessable(
        f"The {what} has more entries than any {what} needs (over {MAX_ENTRIES}).",
        code="too_many_entries",
    )


def _check_directory(path: Path, what: str) -> None:
    """Refuse a directory too large to load, reading only the records at the file's end."""
    with path.open("rb") as file:
        size_bytes = file.seek(0, 2)
        tail_start = max(0, size_bytes - _END_BYTES - 0xFFFF - 76)
        file.seek(tail_start)
        tail = file.read()
        at = tail.rfind(_END)
        if at < 0 or len(tail) - at < _END_BYTES:
            raise corrupt_archive(what)
        (directory_bytes,) = struct.unpack_from("<L", tail, at + 12)
        locator = tail.rfind(_LOCATOR64, 0, at)
        if locator >= 0 and at - locator >= 20:
            (offset,) = struct.unpack_from("<Q", tail, locator + 8)
            if offset + 56 > size_bytes:
                raise corrupt_archive(what)
            file.seek(offset)
            record = file.read(56)
            if record[:4] == _END64:
                directory_bytes = max(
                    struct.unpack_from("<Q", record, 40)[0],
                    directory_bytes if directory_bytes != 0xFFFFFFFF else 0,
                )
    if directory_bytes > min(MAX_DIRECTORY_BYTES, size_bytes):
        raise _too_many(what) if directory_bytes <= size_bytes else corrupt_archive(what)
