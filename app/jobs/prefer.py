"""`Prefer: wait=N` (RFC 7240): how long an answer may be held back."""

from __future__ import annotations

import re

from fastapi import Request

_WAIT = re.compile(r'(?:^|,|;)\s*wait\s*=\s*"?(\d{1,6})"?\s*(?=$|,|;)', re.IGNORECASE)


def wait_preference(request: Request, longest_s: int) -> int | None:
    """Return the seconds that the client is ready to wait, within the limit; None if not asked."""
    found = _WAIT.search(", ".join(request.headers.getlist("prefer")))
    return None if found is None else min(int(found[1]), longest_s)
