"""The installed version."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def get_version() -> str:
    """Return the version of the installed package."""
    return metadata.version("tersor")
