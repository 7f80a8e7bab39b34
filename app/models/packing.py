"""Writes a checked TorchScript file anew, with nothing in it but the entries that were checked."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from app.archives import Archive, open_archive
from app.storage import BlobStore
from app.storage_files import StagedBlob
from app.zip_directory import STORED, Entry

_ALIGNMENT = 64  # of weights, as torch has it
_PADDING = 0x4246
_LIMIT32 = 0xFFFFFFFF
_VERSION = 45  # of readers that know 64-bit sizes


@contextmanager
def repacked(path: Path, store: BlobStore) -> Iterator[StagedBlob]:
    """Yield a staged file with the model's entries and nothing else, unfinished.

    The order is the original's; times, attributes, comments, folders and foreign fields are gone,
    and small entries are stored as they are. Equal entries give equal bytes.

    Raises:
        Unprocessable: `corrupt_entry`.
        StorageFull: there is no room.
    """
    with open_archive(path, "model") as archive, store.stage() as staged:
        entries = [entry for entry in archive.entries if not entry.name.endswith("/")]
        directory = [(_write_entry(archive, entry, staged), entry) for entry in entries]
        start = staged.size_bytes
        for header, entry in directory:
            staged.write(_central(entry, header))
        staged.write(_end(len(directory), start, staged.size_bytes - start))
        yield staged


def _write_entry(archive: Archive, entry: Entry, staged: StagedBlob) -> int:
    """Copy an entry and return where its header lies."""
    header = staged.size_bytes
    name = entry.name.encode()
    size32, wide = _sizes(entry)
    fixed = 30 + len(name) + len(wide) + 4
    padding = -(header + fixed) % _ALIGNMENT
    extra = wide + struct.pack("<2H", _PADDING, padding) + bytes(padding)
    staged.write(
        struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", _VERSION, 0, STORED, 0, 0,
            entry.crc, size32, size32, len(name), len(extra),
        ) + name + extra
    )  # fmt: skip
    for chunk in archive.chunks(entry):
        staged.write(chunk)
    return header


def _central(entry: Entry, header: int) -> bytes:
    name = entry.name.encode()
    size32, wide = _sizes(entry)
    header32 = min(header, _LIMIT32)
    if header >= _LIMIT32:
        wide = struct.pack("<2H", 1, len(wide[4:]) + 8) + wide[4:] + struct.pack("<Q", header)
    return struct.pack(
        "<4s6H3L5H2L", b"PK\x01\x02", _VERSION, _VERSION, 0, STORED, 0, 0, entry.crc, size32,
        size32, len(name), len(wide), 0, 0, 0, 0, header32,
    ) + name + wide  # fmt: skip


def _sizes(entry: Entry) -> tuple[int, bytes]:
    """Return the 32-bit size, and the field with the 64-bit ones where that is too small."""
    if entry.size_bytes < _LIMIT32:
        return entry.size_bytes, b""
    return _LIMIT32, struct.pack("<2H2Q", 1, 16, entry.size_bytes, entry.size_bytes)


def _end(count: int, start: int, size: int) -> bytes:
    """Return the end records; the 64-bit one always, as torch writes it."""
    return (
        struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, _VERSION, _VERSION, 0, 0, count, count, size,
                    start)
        + struct.pack("<4sLQL", b"PK\x06\x07", 0, start + size, 1)
        + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, min(count, 0xFFFF), min(count, 0xFFFF),
                      min(size, _LIMIT32), min(start, _LIMIT32), 0)
    )  # fmt: skip
