"""The first key and where the server is: written where the command finds them."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from tersor.administration import AdministrationFailed, run_admin

_CREDENTIALS = "credentials.json"


class LaunchError(Exception):
    """The service cannot start; the message says what to do."""


def first_credentials(environment: dict[str, str], data_dir: Path, url: str) -> Path | None:
    """Make the first key, or update the address beside the one that is there."""
    path = data_dir / _CREDENTIALS
    made = prepare(environment, "bootstrap")
    known = {**json.loads(path.read_text()), "url": url} if path.exists() else {}
    if made.get("key"):
        known = {"url": url, **{name: made[name] for name in ("project_id", "key_id", "key")}}
    if not known:
        return None  # the file was removed on purpose; keys are in their owners' hands
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(known, file)
    temporary.replace(path)
    return path


def record_server(url: str, data_dir: Path) -> None:
    """Note where the newest server is, so that the command finds it from any folder."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "tersor"
    try:
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = state / f"server.json.{os.getpid()}"
        temporary.write_text(json.dumps({"url": url, "data_dir": str(data_dir)}))
        temporary.chmod(0o600)
        temporary.replace(state / "server.json")
    except OSError:
        return  # a convenience only: a home that cannot be written must not stop the service


def prepare(environment: dict[str, str], step: str) -> dict[str, Any]:
    """Take a step towards a usable database: `migrate` or `bootstrap`."""
    try:
        return run_admin(environment, step)
    except AdministrationFailed as error:
        raise LaunchError(f"preparing the database failed ({step}):\n{error.message}") from error
