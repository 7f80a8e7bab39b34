"""Memory that a step frees, kept for the next one.

The C library hands large blocks back to the system when they are freed, and at the next step gets
them anew, page by page, each page zeroed by the kernel. Seen: a residual net of 32 channels on 64
images of 112 x 112 learns in 112 ms a step where memory is kept, in 134 to 140 where it is not, of
the same peak.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from contextlib import contextmanager

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""Parameters of mallopt(3)."""
_ALL = 2**31 - 1
_USUAL = 32 * 2**20
"""Where glibc's own threshold stands after it has met large blocks; it trims at twice that."""


@contextmanager
def kept_memory() -> Iterator[None]:
    """Let freed memory stay with the process; at the end it goes back.

    Does nothing where the C library has no `mallopt`, or another allocator stands in for its own.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _ALL)
    library.mallopt(_TRIM_THRESHOLD, _ALL)
    try:
        yield
    finally:
        library.mallopt(_MMAP_THRESHOLD, _USUAL)
        library.mallopt(_TRIM_THRESHOLD, 2 * _USUAL)
        library.malloc_trim(0)
