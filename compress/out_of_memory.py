"""Tells a lack of memory from other errors: torch and the runtimes raise it under many names."""

from __future__ import annotations

import re

_WORDS = re.compile(
    r"can't allocate memory|not enough memory|out of memory|failed to allocate memory|bad_alloc",
    re.IGNORECASE,
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that memory ran out."""
    while error is not None:
        if isinstance(error, MemoryError) or _WORDS.search(str(error)):
            return True
        error = error.__cause__
    return False
