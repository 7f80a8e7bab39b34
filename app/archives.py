"""Opens an uploaded zip with caution: what it claims is bounded before it is believed."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from app.errors import Unprocessable
from app.zip_directory import DEFLATED, STORED, Entry, read_directory

_CHUNK_BYTES = 2**18  # stays in the processor's cache between reading and summing


class Archive:
    """An open zip whose entries are where all readers find them."""

    def __init__(self, file: BufferedReader, what: str) -> None:
        directory = read_directory(file, what)
        self.entries = directory.entries
        self.is_plain = directory.is_plain
        self._file = file

    def chunks(self, entry: Entry) -> Iterator[memoryview | bytes]:
        """Yield an entry's bytes; its size and checksum have been verified when this ends.

        A chunk lasts until the next one is asked for.

        Raises:
            Unprocessable: `corrupt_entry`.
        """
        size_bytes = crc = 0
        for chunk in self._unpack(entry):
            size_bytes += len(chunk)
            crc = zlib.crc32(chunk, crc)
            if size_bytes > entry.size_bytes:  # a bomb, or a lie
                break
            yield chunk
        if (size_bytes, crc) != (entry.size_bytes, entry.crc):
            raise corrupt_entry(entry)

    def read(self, entry: Entry) -> bytes:
        """Return an entry's bytes."""
        return b"".join(bytes(chunk) for chunk in self.chunks(entry))

    def verify(self, entry: Entry) -> None:
        """Read an entry through for its checksum."""
        for _chunk in self.chunks(entry):
            pass

    def read_start(self, entry: Entry, size_bytes: int) -> bytes:
        """Return the first bytes of an entry, unverified."""
        start = b""
        for chunk in self._unpack(entry):
            start += bytes(chunk[: size_bytes - len(start)])
            if len(start) >= size_bytes:
                break
        return start

    def _unpack(self, entry: Entry) -> Iterator[memoryview | bytes]:
        if entry.method == STORED:
            yield from self._packed(entry)
            return
        if entry.method != DEFLATED:
            raise corrupt_entry(entry)
        unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
        try:
            for chunk in self._packed(entry):
                left: memoryview | bytes = chunk
                while left:
                    yield unpacker.decompress(left, _CHUNK_BYTES)
                    left = unpacker.unconsumed_tail
            while unpacked := unpacker.decompress(b"", _CHUNK_BYTES):
                yield unpacked
        except zlib.error as error:
            raise corrupt_entry(entry) from error
        if not unpacker.eof or unpacker.unused_data:
            raise corrupt_entry(entry)

    def _packed(self, entry: Entry) -> Iterator[memoryview]:
        buffer = memoryview(bytearray(min(_CHUNK_BYTES, entry.packed_bytes)))
        self._file.seek(entry.start)
        left = entry.packed_bytes
        while left:
            count = self._file.readinto(buffer[:left])
            if not count:
                raise corrupt_entry(entry)
            left -= count
            yield buffer[:count]


@contextmanager
def open_archive(path: Path, what: str) -> Iterator[Archive]:
    """Yield the archive; `what` names the upload in messages.

    Raises:
        Unprocessable: corrupt_archive, not_canonical, too_many_entries.
    """
    with path.open("rb") as file:
        yield Archive(file, what)


def corrupt_entry(entry: Entry) -> Unprocessable:
    """Return the error for an entry that does not unpack to what it should."""
    return Unprocessable(
        f"The entry {entry.name!a} of the archive is damaged (its checksum or its packing is "
        "wrong); save the file again and upload the new one.",
        code="corrupt_entry",
    )
