"""A real service: `tersor up` with its broker, API and workers, on a free port."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from tests import brief

_QUICK = {
    "TERSOR_WORKER_LEASE_S": "3",
    "TERSOR_WORKER_HEARTBEAT_S": "0.5",
    "TERSOR_WORKER_SWEEP_S": "0.5",
    "TERSOR_WORKER_RESEND_AFTER_S": "2",
    "TERSOR_WORKER_THREADS": "1",  # nets this small wait longer for a second one than it saves
}


@dataclass
class Service:
    """A running `tersor up`."""

    process: subprocess.Popen[str]
    data_dir: Path
    url: str
    key: str

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=60,
            trust_env=False,
        )

    def descendants(self) -> dict[int, str]:
        """Return pid -> command line of all processes below the launcher."""
        parents, commands = {}, {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                after_name = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except (FileNotFoundError, ProcessLookupError):
                continue  # it ended while we looked
            if after_name[0] != "Z":
                parents[int(folder.name)] = int(after_name[1])
                commands[int(folder.name)] = command
        found: dict[int, str] = {}
        todo = [self.process.pid]
        while todo:
            parent = todo.pop()
            for pid, ppid in parents.items():
                if ppid == parent:
                    found[pid] = commands[pid]
                    todo.append(pid)
        return found

    def stop(self, number: int = signal.SIGINT) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(30)


def environment(home: Path) -> dict[str, str]:
    """Return the environment of a service under test: none of the caller's settings; brief."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("TERSOR_")}
    return {**kept, **_QUICK, "XDG_STATE_HOME": str(home), "PYTHONPATH": brief.FOLDER}


def start(data_dir: Path, *arguments: str, **variables: str) -> Service:
    log = data_dir.parent / f"{data_dir.name}.out"
    process = subprocess.Popen(
        [sys.executable, "-m", "tersor", "up", "--data-dir", str(data_dir), "--port", "0",
         *arguments],
        stdout=log.open("w"),
        stderr=subprocess.STDOUT,
        text=True,
        env=environment(data_dir.parent / "state") | variables,
    )  # fmt: skip
    deadline = time.monotonic() + 90
    while "Ctrl-C stops it" not in log.read_text():
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise AssertionError(f"the service did not start: {log.read_text()}")
        time.sleep(0.05)
    access = json.loads((data_dir / "credentials.json").read_text())
    return Service(process, data_dir, access["url"], access["key"])


@pytest.fixture
def start_service(tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Return a function that starts a service of the test's own."""
    started: list[Service] = []

    def start_one(*arguments: str, name: str = "data", **variables: str) -> Service:
        started.append(start(tmp_path / name, *arguments, **variables))
        return started[-1]

    yield start_one
    for service in started:
        service.stop()


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service shared by tests that leave it alive."""
    shared = start(tmp_path_factory.mktemp("service") / "data")
    yield shared
    shared.stop()


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client() as client:
        yield client
