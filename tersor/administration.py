"""What is done beside the service, on its machine: its own commands, each in a process.

The client imports nothing of the service, and is installed in places where that is not.
"""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tersor.errors import ConfigurationError, TersorError

_PACKAGES = ("alembic", "celery", "fastapi", "pydantic_settings", "sqlalchemy")


class AdministrationFailed(TersorError):
    """The service's own command said no; the message says what to do."""

    code = "administration_failed"


def administer(data_dir: Path, *arguments: str) -> dict[str, Any]:
    """Run a command on the service whose settings are in the environment, and return its answer.

    Args:
        data_dir: The service's data folder.
        arguments: The command, as `backup` and a folder.

    Raises:
        ConfigurationError: `server_not_installed`.
        AdministrationFailed: The command said no.
    """
    check_installed(_PACKAGES)
    data_dir = data_dir.expanduser().resolve()
    return run_admin({**os.environ, "TERSOR_DATA_DIR": str(data_dir)}, *arguments)


def check_installed(packages: Sequence[str]) -> None:
    """See that the service can run here.

    Raises:
        ConfigurationError: `server_not_installed`.
    """
    for package in packages:
        if importlib.util.find_spec(package) is None:
            raise ConfigurationError(
                f"{package} is not installed: this is the light client. Install the service with: "
                'pip install "tersor[server]"',
                code="server_not_installed",
            )


def run_admin(environment: Mapping[str, str], *arguments: str) -> dict[str, Any]:
    """Run `python -m app.admin` and return its answer.

    Raises:
        AdministrationFailed: It said no.
    """
    done = subprocess.run(
        # -P: a folder named app where the user happens to stand is not ours
        [sys.executable, "-P", "-m", "app.admin", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise AdministrationFailed(done.stderr.strip())
    return json.loads(done.stdout) if done.stdout.strip() else {}
