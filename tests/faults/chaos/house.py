"""The service under attack: `tersor up`, and beside it a worker of its own for the same jobs."""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from pathlib import Path

import httpx

from app.db import Database
from app.settings import DatabaseSettings, Settings
from app.storage import BlobStore, open_store
from tersor.watched import Watched
from tests import brief
from tests.faults.chaos.processes import descendants, reap_orphans

_CODE = Path(__file__).parents[3]
LEASE_S = 3.0
MAX_ATTEMPTS = 5
_QUICK = {
    "WORKER_LEASE_S": LEASE_S,
    "WORKER_HEARTBEAT_S": 0.5,
    "WORKER_SWEEP_S": 0.5,
    "WORKER_RESEND_AFTER_S": 2,
    "WORKER_MAX_ATTEMPTS": MAX_ATTEMPTS,
    "WORKER_THREADS": 1,
    "DATABASE_BUSY_TIMEOUT_S": 5,
}


class House:
    """Starts the parts, and starts again what ends, as a supervisor of services would."""

    def __init__(self, folder: Path, database_url: str | None) -> None:
        self.data_dir = folder / "data"
        self.logs = folder / "logs"
        self.logs.mkdir()
        kept = {name: value for name, value in os.environ.items() if not name.startswith("TERSOR_")}
        environment = kept | {f"TERSOR_{name}": str(value) for name, value in _QUICK.items()}
        environment |= {
            "TERSOR_DATA_DIR": str(self.data_dir),
            "XDG_STATE_HOME": str(folder / "state"),
            "PYTHONPATH": os.pathsep.join((brief.FOLDER, str(_CODE))),
            "OMP_NUM_THREADS": "1",
        }
        self.settings = Settings(data_dir=self.data_dir)
        if database_url is not None:
            environment["TERSOR_DATABASE_URL"] = database_url
            self.settings.__dict__["database"] = DatabaseSettings(url=database_url)
        python = [sys.executable, "-P", "-m"]
        self._launcher = Watched(
            "launcher",
            [*python, "tersor", "up", "--data-dir", str(self.data_dir), "--port", _free_port()],
            environment, self.logs, stopped_limit_s=LEASE_S,
        )  # fmt: skip
        self._second = Watched(
            "second-worker",
            [*python, "workers", "--queues", "cpu", "--slots", "1"],
            environment, self.logs, stopped_limit_s=LEASE_S,
        )  # fmt: skip
        self.url = self.key = ""

    def start(self) -> None:
        """Start everything; return once it is ready."""
        self._launcher.start()
        deadline = time.monotonic() + 90
        while not self.is_ready():
            if time.monotonic() > deadline:
                raise SystemExit(f"the service did not start:\n{self._launcher.last_lines()}")
            self.watch()
            time.sleep(0.1)
        self._second.start()
        self.database = Database(self.settings)
        self.store: BlobStore = open_store(self.settings.storage_url)

    def is_ready(self) -> bool:
        """Return whether the service says that all its parts work."""
        try:
            if not self.url:
                access = json.loads((self.data_dir / "credentials.json").read_text())
                self.url, self.key = access["url"], access["key"]
            return httpx.get(f"{self.url}/readyz", trust_env=False, timeout=2).is_success
        except (FileNotFoundError, httpx.HTTPError):
            return False

    def watch(self) -> None:
        """Start again what has ended. Call often, from the main thread."""
        self._launcher.watch()
        self._second.watch()
        reap_orphans({pid for pid in (self._launcher.pid, self._second.pid) if pid})

    def client(self) -> httpx.Client:
        """Return a client with the first key."""
        return httpx.Client(
            base_url=self.url, headers={"Authorization": f"Bearer {self.key}"}, timeout=30,
            trust_env=False,
        )  # fmt: skip

    def stop(self) -> list[str]:
        """Stop everything in order; return what is left of it, in words."""
        self._second.stop(grace_s=10)
        self._launcher.stop(grace_s=25)
        if hasattr(self, "database"):
            self.database.close()
        deadline = time.monotonic() + 3
        while (left := descendants()) and time.monotonic() < deadline:
            reap_orphans(set())
            time.sleep(0.05)
        return [f"{process.role} {process.pid}" for process in left]


def _free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return str(listener.getsockname()[1])
