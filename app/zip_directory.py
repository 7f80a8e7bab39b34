"""Reads the directory of a zip and proves that every reader must see the same entries.

A zip says everything twice, in a header before each entry and in the directory at the end, and
readers believe different halves. Here the two must agree, and entries, directory and end record
must tile the file from its first byte to its last: nothing before, between or behind them.
https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from io import BufferedReader

from app.errors import Unprocessable

MAX_ENTRIES = 20_000
MAX_DIRECTORY_BYTES = 8 * 2**20
STORED, DEFLATED = 0, 8
_MAX_COMMENT_BYTES = 0xFFFF
_FULL16, _FULL32 = 0xFFFF, 0xFFFFFFFF  # "see the 64-bit record"
_DESCRIPTOR = 0x8  # sizes and checksum follow the data
_FLAGS = _DESCRIPTOR | 0x800 | 0x6  # UTF-8 names; how hard the packer tried
_ZIP64, _UNICODE_PATH = 0x1, 0x7075
_PLAIN_EXTRAS = {_ZIP64, 0x4246}  # "FB": torch's padding, so that weights lie aligned
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")


@dataclass(frozen=True)
class Entry:
    """One entry: `packed_bytes` from `start` on, which unpack to `size_bytes`."""

    name: str
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    start: int


@dataclass(frozen=True)
class Directory:
    """All entries, in the directory's order.

    Attributes:
        is_plain: Nothing else is in the file: no comments, attributes of other systems, or folders.
    """

    entries: list[Entry]
    is_plain: bool


@dataclass(frozen=True)
class _Central:
    """An entry as the directory describes it; `header` is where its other description lies."""

    name: bytes
    flags: int
    method: int
    crc: int
    packed_bytes: int
    size_bytes: int
    header: int
    is_plain: bool


def read_directory(file: BufferedReader, what: str) -> Directory:
    """Return the entries of a zip; `what` names the upload in messages.

    Raises:
        Unprocessable: corrupt_archive, not_canonical, too_many_entries.
    """
    start, content, count = _find_directory(file, what)
    try:
        described = _read_central(content)
    except (struct.error, IndexError) as error:
        raise corrupt_archive(what) from error
    if len(described) != count:
        raise corrupt_archive(what)
    entries: dict[int, Entry] = {}
    is_plain = True
    at = 0
    in_file = sorted(described, key=lambda each: each.header)
    for each, following in zip(in_file, [*(one.header for one in in_file[1:]), start], strict=True):
        if each.header != at:
            raise not_canonical(what, f"something lies before the entry {each.name!a}")
        entries[at], extras = _check_local(file, each, following, what)
        is_plain = is_plain and each.is_plain and extras <= _PLAIN_EXTRAS
        at = following
    if at != start:
        raise not_canonical(what, "something lies before its directory")
    return Directory([entries[each.header] for each in described], is_plain)


def corrupt_archive(what: str) -> Unprocessable:
    """Return the error for an archive whose directory cannot be read."""
    return Unprocessable(
        f"The {what} is cut off or damaged: its directory, at the end, cannot be read. "
        "Upload it again; compare its SHA-256 to be sure.",
        code="corrupt_archive",
    )


def not_canonical(what: str, why: str) -> Unprocessable:
    """Return the error for an archive that readers could understand differently."""
    return Unprocessable(
        f"The {what} is a zip file that programs may read in different ways: {why}. Save it again "
        "with the program that made it, and upload it as it is.",
        code="not_canonical",
    )


def _find_directory(file: BufferedReader, what: str) -> tuple[int, bytes, int]:
    """Return where the directory begins, its bytes, and its number of entries."""
    file_bytes = file.seek(0, 2)
    end = file_bytes - _END.size
    tail = _read(file, max(0, end - _MAX_COMMENT_BYTES), _END.size + _MAX_COMMENT_BYTES)
    found = tail.rfind(b"PK\x05\x06")
    if end < 0 or found < 0 or found + _END.size > len(tail):
        raise corrupt_archive(what)
    mark, disk, first_disk, here, count, size, start, comment = _END.unpack(tail[-_END.size :])
    if mark != b"PK\x05\x06" or comment:
        raise not_canonical(what, "something follows its end")
    disks = {disk, first_disk}
    record = _read(file, end - _LOCATOR64.size, _LOCATOR64.size)
    if record.startswith(b"PK\x06\x07"):
        end -= _LOCATOR64.size + _END64.size
        _, disk64, at64, _ = _LOCATOR64.unpack(record)
        record = _read(file, end, _END64.size)
        if at64 != end or not record.startswith(b"PK\x06\x06"):
            raise not_canonical(what, "its 64-bit end record is not where it belongs")
        _, _, _, _, one, two, here64, count64, size64, start64 = _END64.unpack(record)
        for short, full in ((here, here64), (count, count64)):
            if short not in (full, _FULL16):
                raise not_canonical(what, "its two end records disagree")
        for short, full in ((size, size64), (start, start64)):
            if short not in (full, _FULL32):
                raise not_canonical(what, "its two end records disagree")
        here, count, size, start = here64, count64, size64, start64
        disks |= {disk64, one, two}
    if count > MAX_ENTRIES or size > min(MAX_DIRECTORY_BYTES, max(end, 0)):
        raise _too_many(what) if size <= file_bytes else corrupt_archive(what)
    if disks != {0} or here != count or start + size != end:
        raise not_canonical(what, "its directory is not where its end record says")
    return start, _read(file, start, size), count


def _read_central(content: bytes) -> list[_Central]:
    found = []
    at = 0
    while at < len(content):
        (
            mark, _made, _needed, flags, method, _time, _day, crc, packed, size, name_bytes,
            extra_bytes, comment_bytes, disk, _inner, outer, header,
        ) = _CENTRAL.unpack_from(content, at)  # fmt: skip
        at += _CENTRAL.size
        name = content[at : at + name_bytes]
        extras = _read_extras(content[at + name_bytes : at + name_bytes + extra_bytes])
        at += name_bytes + extra_bytes + comment_bytes
        if mark != b"PK\x01\x02" or at > len(content) or disk:
            raise IndexError
        wide = extras.get(_ZIP64, b"")
        values = []
        for value in (size, packed, header):
            if value == _FULL32:
                (value,), wide = struct.unpack_from("<Q", wide), wide[8:]
            values.append(value)
        size, packed, header = values
        is_plain = not comment_bytes and set(extras) <= _PLAIN_EXTRAS and outer & 0x10 == 0
        is_plain = is_plain and not name.endswith(b"/")
        if _UNICODE_PATH in extras or flags & ~_FLAGS:
            flags |= 1  # refused with the local header
        found.append(_Central(name, flags, method, crc, packed, size, header, is_plain))
    return found


def _check_local(
    file: BufferedReader, entry: _Central, following: int, what: str
) -> tuple[Entry, set[int]]:
    """Return the entry, and its extra fields' ids, if its own header says what the directory says.

    `following` is where the next header or the directory begins.
    """
    fixed = _read(file, entry.header, _LOCAL.size)
    if len(fixed) < _LOCAL.size:
        raise corrupt_archive(what)
    mark, _needed, flags, method, _time, _day, crc, packed, size, name_bytes, extra_bytes = (
        _LOCAL.unpack(fixed)
    )
    variable = _read(file, entry.header + _LOCAL.size, name_bytes + extra_bytes)
    start = entry.header + _LOCAL.size + name_bytes + extra_bytes
    try:
        extras = _read_extras(variable[name_bytes:])
        if _ZIP64 in extras and (packed, size) != (0, 0):
            size64, packed64 = struct.unpack_from("<2Q", extras[_ZIP64])
            if packed not in (packed64, _FULL32) or size not in (size64, _FULL32):
                raise IndexError
            size, packed = size64, packed64
    except (struct.error, IndexError) as error:
        raise corrupt_archive(what) from error
    says = (crc, packed, size)
    expected = (entry.crc, entry.packed_bytes, entry.size_bytes)
    is_late = bool(flags & _DESCRIPTOR) and says == (0, 0, 0)
    gap_bytes = following - start - entry.packed_bytes
    gap = _read(file, start + entry.packed_bytes, gap_bytes) if 0 < gap_bytes <= 24 else b""
    if (
        mark != b"PK\x03\x04"
        or flags & ~_FLAGS
        or (flags, method) != (entry.flags, entry.method)
        or variable[:name_bytes] != entry.name
        or _UNICODE_PATH in extras
        or (says != expected and not is_late)
        or len(gap) != gap_bytes
        or gap not in (_descriptors(*expected) if flags & _DESCRIPTOR else (b"",))
    ):
        raise not_canonical(what, f"the entry {entry.name!a} is described twice, in different ways")
    name = entry.name.decode("utf-8", "surrogateescape")
    checked = Entry(name, method, entry.crc, entry.packed_bytes, entry.size_bytes, start)
    return checked, set(extras)


def _descriptors(crc: int, packed: int, size: int) -> list[bytes]:
    """Return the forms in which sizes may follow the data."""
    forms = [struct.pack("<4sL2Q", b"PK\x07\x08", crc, packed, size)]
    if max(packed, size) < _FULL32:
        forms.append(struct.pack("<4s3L", b"PK\x07\x08", crc, packed, size))
    return forms


def _read_extras(content: bytes) -> dict[int, bytes]:
    """Return the extra fields by their ids."""
    extras = {}
    while content:
        kind, length = struct.unpack_from("<2H", content)
        if kind in extras or 4 + length > len(content):
            raise IndexError
        extras[kind] = content[4 : 4 + length]
        content = content[4 + length :]
    return extras


def _read(file: BufferedReader, at: int, size_bytes: int) -> bytes:
    file.seek(max(0, at))
    return file.read(size_bytes)


def _too_many(what: str) -> Unprocessable:
    return Unprocessable(
        f"The {what} has more entries than any {what} needs (over {MAX_ENTRIES}).",
        code="too_many_entries",
    )
