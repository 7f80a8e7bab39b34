"""`tersor up`: what a user and an operating system may do to it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from tests.flow.conftest import Service, environment

pytestmark = pytest.mark.flow


def alive(pids: list[int]) -> list[int]:
    return [pid for pid in pids if Path(f"/proc/{pid}").exists() and not _zombie(pid)]


def _zombie(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def eventually(holds: Callable[[], bool], timeout_s: float = 20.0, every_s: float = 0.05) -> bool:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if holds():
            return True
        time.sleep(every_s)
    return holds()


def ready(service: Service) -> bool:
    try:
        return httpx.get(f"{service.url}/readyz", trust_env=False).is_success
    except httpx.HTTPError:
        return False


def run_up(data_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tersor", "up", "--data-dir", str(data_dir), *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment(data_dir.parent / "state"),
    )


def test_says_in_one_screen_where_it_listens_and_where_its_data_lies(service: Service) -> None:
    screen = (service.data_dir.parent / f"{service.data_dir.name}.out").read_text()
    assert service.url in screen
    assert str(service.data_dir) in screen
    assert len(screen.splitlines()) <= 24


def test_keeps_its_key_readable_by_its_owner_alone(service: Service) -> None:
    mode = (service.data_dir / "credentials.json").stat().st_mode
    assert stat.S_IMODE(mode) == 0o600
    assert stat.S_IMODE(service.data_dir.stat().st_mode) == 0o700


def test_refuses_a_second_one_on_the_same_folder_and_names_the_first(service: Service) -> None:
    second = run_up(service.data_dir, "--port", "0")
    assert second.returncode != 0
    assert "already runs" in second.stderr
    assert service.url in second.stderr
    assert "Traceback" not in second.stderr
    assert ready(service)


def test_refuses_a_port_that_is_taken(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = run_up(tmp_path / "data", "--port", str(port))
    assert refused.returncode != 0
    assert f"127.0.0.1:{port}" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_stops_cleanly_on_ctrl_c_and_leaves_no_process(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    pids = list(service.descendants())
    assert len(pids) >= 4
    assert service.stop(signal.SIGINT) == 0
    assert alive(pids) == []


def test_leaves_no_orphan_after_kill_9_of_itself_and_starts_again(
    start_service: Callable[..., Service],
) -> None:
    service = start_service()
    pids = list(service.descendants())
    service.stop(signal.SIGKILL)
    assert eventually(lambda: alive(pids) == []), f"left over: {alive(pids)}"
    again = start_service()
    assert again.key == service.key
    assert ready(again)


@pytest.mark.parametrize("part", ["app", "workers", "valkey-server"])
def test_restarts_a_part_that_is_killed(service: Service, part: str) -> None:
    def find() -> list[int]:
        return [pid for pid, command in service.descendants().items() if part in command]

    before = find()
    assert before
    os.kill(before[0], signal.SIGKILL)
    assert eventually(lambda: before[0] not in find() and len(find()) >= len(before))
    assert eventually(lambda: ready(service))


def freeze_in_mid_write(pid: int, database: Path) -> bool:
    """Send SIGSTOP until it meets the process while that holds the database's lock."""

    def is_met() -> bool:
        os.kill(pid, signal.SIGSTOP)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            time.sleep(0.1)  # another process's write would be over by now
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return True
        connection.execute("ROLLBACK")
        os.kill(pid, signal.SIGCONT)
        return False

    with closing(sqlite3.connect(database, 0, isolation_level=None)) as connection:
        return eventually(is_met, 60, every_s=0.002)


def test_a_part_that_is_frozen_in_mid_write_does_not_hold_the_service(service: Service) -> None:
    def workers() -> list[int]:
        return [
            pid
            for pid, command in service.descendants().items()
            if "-m workers --queues cpu" in command
        ]

    (frozen,) = workers()
    assert freeze_in_mid_write(frozen, service.data_dir / "tersor.db")
    assert eventually(lambda: workers() != [frozen] and len(workers()) == 1)
    with service.client() as client:
        assert client.post("/v1/keys", json={"name": "written"}).status_code == 201
    said = (service.data_dir.parent / f"{service.data_dir.name}.out").read_text()
    assert said.count("worker-cpu exited (killed, since it had been stopped for 3 s)") == 1
    assert eventually(lambda: ready(service))


def test_runs_in_a_folder_whose_path_is_too_long_for_a_socket(
    start_service: Callable[..., Service],
) -> None:
    service = start_service(name="d" * 120)
    assert ready(service)


def test_a_folder_of_the_users_named_app_is_not_taken_for_ours(
    service: Service, tmp_path: Path
) -> None:
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").write_text("raise SystemExit('the wrong app')")
    done = subprocess.run(
        [Path(sys.executable).parent / "tersor", "up", "--data-dir", str(tmp_path / "d"),
         "--port", str(httpx.URL(service.url).port)],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
        env=environment(tmp_path),
    )  # fmt: skip
    assert "the wrong app" not in done.stderr
    assert "cannot listen" in done.stderr


def test_records_the_server_for_the_command(service: Service) -> None:
    state = service.data_dir.parent / "state" / "tersor" / "server.json"
    assert json.loads(state.read_text())["url"] == service.url
