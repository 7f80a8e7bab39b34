"""Finds the service and its key: arguments, environment, then what `tersor up` wrote.

The command works from any folder: `tersor up` notes the last server it started in
`${XDG_STATE_HOME:-~/.local/state}/tersor/server.json`, and keeps its first key in
`credentials.json` of the data folder, readable by its owner alone.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from tersor.errors import ConfigurationError

DEFAULT_URL = "http://127.0.0.1:8080"


@dataclass(frozen=True)
class Access:
    """An address and the key for it, if any."""

    url: str
    api_key: str | None = field(repr=False)


def find_access(url: str | None = None, api_key: str | None = None) -> Access:
    """Return where the service is and the key for it.

    A key file is used only for the very server it was written for, so that a key never goes
    to another one.

    Args:
        url: Base address; else `TERSOR_URL`, else that of `TERSOR_DATA_DIR`, else the last
            `tersor up`, else the folder `tersor-data` here, else port 8080 of this machine.
        api_key: Key; else `TERSOR_API_KEY`, else the key file of that server.

    Raises:
        ConfigurationError: The address or the key is malformed.
    """
    recorded = _read_json(state_folder() / "server.json")
    chosen = os.environ.get("TERSOR_DATA_DIR")
    folders = [chosen] if chosen else [recorded.get("data_dir"), "tersor-data"]
    files = [_read_json(Path(str(folder)) / "credentials.json") for folder in folders if folder]

    url = url or os.environ.get("TERSOR_URL") or _first("url", *files) or DEFAULT_URL
    url = _check_url(url)
    api_key = api_key or os.environ.get("TERSOR_API_KEY")
    if not api_key:
        here = [known for known in files if str(known.get("url", "")).rstrip("/") == url]
        api_key = _first("key", *here)
    if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
        raise ConfigurationError(
            "The API key holds characters no key has: give it again, without line ends."
        )
    return Access(url, api_key)


def _check_url(url: str) -> str:
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        usable = False
    if not usable:
        raise ConfigurationError(
            f"{url!r} is no address of a service: it should look like {DEFAULT_URL}."
        )
    return url.rstrip("/")


def state_folder() -> Path:
    """Return where this user's programs keep what they should remember."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path("~/.local/state").expanduser()) / "tersor"


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}  # not there, not ours to read, or half-written: as good as absent
    return content if isinstance(content, dict) else {}


def _first(name: str, *sources: dict[str, Any]) -> str | None:
    return next((str(source[name]) for source in sources if source.get(name)), None)
