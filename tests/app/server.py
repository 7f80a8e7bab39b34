"""A real server process: `python -m app` on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from app.db import migrate
from tests.app.conftest import make_key, make_settings


@dataclass
class Server:
    process: subprocess.Popen[bytes]
    port: int
    key: str
    data_dir: Path
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self) -> httpx.Client:
        headers = {"Authorization": f"Bearer {self.key}"}
        return httpx.Client(base_url=self.url, headers=headers, timeout=60, trust_env=False)

    def memory_bytes(self, field: str = "VmRSS") -> int:
        """Return `VmRSS`, or `VmHWM` for the peak."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        line = next(line for line in text.splitlines() if line.startswith(field))
        return int(line.split()[1]) * 1024

    def stored_files(self) -> list[Path]:
        return [path for path in (self.data_dir / "blobs").rglob("*") if path.is_file()]


def environment(data_dir: Path, **settings: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TERSOR_")}
    return {**kept, "TERSOR_DATA_DIR": str(data_dir), **settings}


def admin(settings: dict[str, str], *arguments: str) -> Any:
    done = subprocess.run(
        [sys.executable, "-m", "app.admin", *arguments],
        env=settings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@contextmanager
def serve(data_dir: Path, **settings: str) -> Iterator[Server]:
    """Yield a running server with a migrated database and an admin's key."""
    env = environment(data_dir, **settings)
    key = _prepare(data_dir)
    log = data_dir.parent / f"{data_dir.name}.log"
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(64)
        process = subprocess.Popen(
            [sys.executable, "-m", "app", "--fd", str(listener.fileno())],
            env=env, pass_fds=[listener.fileno()], stderr=log.open("wb"),
        )  # fmt: skip
        port = listener.getsockname()[1]
    server = Server(process, port, key, data_dir, log)
    try:
        with server.client() as client:
            assert client.get("/healthz").status_code == 200, log.read_text()
        yield server
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(20)


def _prepare(data_dir: Path) -> str:
    """Do what `app.admin migrate` and `bootstrap` do, without two processes; return the key."""
    own = make_settings(data_dir, f"sqlite:///{data_dir}/tersor.db", "")
    migrate(own)
    return make_key(own, "default").token


def wait_until(condition: Any, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
