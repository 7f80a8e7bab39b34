"""Size and identity of files on disk."""

from __future__ import annotations

import hashlib
from pathlib import Path


def size_bytes(path: Path) -> int:
    """Return the file's length."""
    return path.stat().st_size


def sha256(path: Path) -> str:
    """Return the hex digest of the file, read in a streaming way."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
