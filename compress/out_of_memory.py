"""Tells a lack of memory from other errors: torch and the runtimes raise it under many names."""

from __future__ import annotations

import errno
import re

_WORDS = re.compile(
    r"can(?:'t|not) allocate memory|not enough memory|out of memory|failed to allocate memory"
    r"|bad_alloc|can't start new thread"  # for its stack
    # oneDNN's, for its kernels and what they work on; of a descriptor it means another thing
    r"|could not create a (?:primitive(?! descriptor)|memory)",
    re.IGNORECASE,
)


def lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, says that memory ran out."""
    while error is not None:
        is_refused = isinstance(error, OSError) and error.errno == errno.ENOMEM
        if isinstance(error, MemoryError) or is_refused or _WORDS.search(str(error)):
            return True
        error = error.__cause__
    return False
