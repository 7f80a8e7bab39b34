"""Notes of uploads under way, so that another process goes on with one where this was ended.

A note lies in the user's state folder under the fingerprint of file and service. It is a
convenience: where it cannot be written, an upload still goes on after a cut, only not after the end
of its process.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path

from tersor.access import state_folder

_KEPT_S = 7 * 24 * 3600.0  # longer than a service keeps an upload, unless set otherwise


class UploadNote:
    """What is known of the upload of one file, as it is now, to one service."""

    def __init__(self, url: str, path: Path) -> None:
        facts = path.stat()
        known = [url, str(path.resolve()), facts.st_size, facts.st_mtime_ns]
        fingerprint = hashlib.sha256(json.dumps(known).encode()).hexdigest()
        self._path = state_folder() / "uploads" / fingerprint[:32]

    def read(self) -> str | None:
        """Return the id of the upload, if one is under way."""
        try:
            return self._path.read_text(encoding="ascii") or None
        except (OSError, UnicodeError):
            return None

    def write(self, upload_id: str) -> None:
        """Note an upload, and forget those that are long over."""
        temporary = self._path.with_name(f"{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            for other in self._path.parent.iterdir():
                if time.time() - other.stat().st_mtime > _KEPT_S:
                    other.unlink(missing_ok=True)
            temporary.write_text(upload_id, encoding="ascii")
            temporary.replace(self._path)

    def remove(self) -> None:
        """Forget the upload."""
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)
