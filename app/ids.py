"""Resource ids: a prefix and a UUIDv7 in base32, so they sort by time and cannot be guessed."""

from __future__ import annotations

import secrets
import time
from datetime import UTC, datetime, timedelta

_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"  # Crockford's: no i, l, o, u
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def new_id(prefix: str) -> str:
    """Return e.g. `job_01jd…`: 48 bits of milliseconds, 12 of their fraction, 62 random.

    Source: RFC 9562, section 5.7 (UUIDv7) with method 3 of section 6.2 for the fraction.
    """
    now_ns = time.time_ns()
    milliseconds, rest_ns = divmod(now_ns, 1_000_000)
    fraction = rest_ns * 4096 // 1_000_000
    value = (
        (milliseconds & (2**48 - 1)) << 80
        | 0x7 << 76
        | fraction << 64
        | 0b10 << 62
        | secrets.randbits(62)
    )
    return _spell(prefix, value)


def lowest_id(prefix: str, at: datetime) -> str:
    """Return what sorts before every id that is made from `at` on, and after those made before."""
    milliseconds = min(max(0, (at - _EPOCH) // timedelta(milliseconds=1)), 2**48 - 1)
    return _spell(prefix, milliseconds << 80)


def _spell(prefix: str, value: int) -> str:
    digits = [_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5)]
    return f"{prefix}_{''.join(digits)}"
