"""Random damage to real files."""

from __future__ import annotations

import io
import zipfile
from random import Random
from typing import Any


def mutate(content: bytes, random: Random) -> bytes:
    """Flip, overwrite, cut, repeat or insert bytes, at up to four places.

    In half of the zips an entry is damaged and the checksums are made to fit again: else nearly
    all would end at the checksum, and the parsers behind it would see nothing.
    """
    if content.startswith(b"PK") and random.random() < 0.5:
        return _mutate_entry(content, random)
    damaged = bytearray(content)
    for _ in range(random.randint(1, 4)):
        _damage(damaged, random)
    return bytes(damaged)


def _damage(content: bytearray, random: Random) -> None:
    at = random.randrange(max(1, len(content)))
    length = random.choice((1, 1, 1, 2, 4, 8, 64, 1024))
    match random.randrange(6):
        case 0 if content:
            content[min(at, len(content) - 1)] ^= 1 << random.randrange(8)
        case 1:
            content[at : at + length] = random.randbytes(length)
        case 2:
            del content[at:]
        case 3:
            del content[at : at + length]
        case 4:
            content[at:at] = content[at : at + length]
        case _:
            edges = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
            content[at : at + 4] = random.choice(edges).to_bytes(4, "little")


def _mutate_entry(content: bytes, random: Random) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(buffer, "w") as new:
        names = old.namelist()
        small = [name for name in names if name.endswith((".pkl", ".py", ".npy", "version"))]
        chosen = random.choice(small or names)
        for name in names:
            data: Any = bytearray(old.read(name))
            if name == chosen:
                _damage(data, random)
            new.writestr(zipfile.ZipInfo(name), bytes(data))
    return buffer.getvalue()
