"""The worker's side of the zygote: starts it, restarts it, and asks it for children."""

from __future__ import annotations

import array
import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

_MESSAGE_BYTES = 65536
_BACKOFF_S = (0.0, 0.5, 2.0, 5.0)
_STEADY_S = 30.0
_KILL_TIMEOUT_S = 2.0
_SPAWN_TIMEOUT_S = 30.0
# torch counts its threads by itself; OpenBLAS would start its own while being imported
_ENVIRONMENT = {"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "OPENBLAS_NUM_THREADS": "1"}
_PASSED_ON = ("PYTHONPATH", "LD_LIBRARY_PATH")


class ZygoteLost(Exception):
    """The zygote ended before it had started the child."""


class Child:
    """A job's process. `status` is its exit status, minus the signal; None if it got lost."""

    def __init__(self, child_id: int, spawner: Spawner) -> None:
        self.id = child_id
        self.pid: int | None = None
        self.status: int | None = None
        self.started = threading.Event()
        self.exited = threading.Event()
        self._spawner = spawner

    def kill(self) -> None:
        """Kill the process and its group; return when the kernel has them off."""
        self._spawner.kill(self)


class Spawner:
    """Keeps one zygote running.

    One thread starts each zygote, listens to it and stays, since the kernel kills the zygote
    when the thread that started it ends.
    """

    def __init__(self, on_ready: Callable[[], None] = lambda: None) -> None:
        self.machine: Mapping[str, Any] = {}
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._ready = threading.Event()
        self._stopping = threading.Event()
        self._channel: socket.socket | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._children: dict[int, Child] = {}
        self._next_id = 0
        self._thread = threading.Thread(target=self._keep, name="zygote-keeper", daemon=True)

    @property
    def pid(self) -> int | None:
        """The zygote's pid while it runs."""
        return self._process.pid if self._process else None

    def start(self) -> None:
        """Begin to keep a zygote; returns at once."""
        self._thread.start()

    def wait_ready(self, timeout_s: float) -> bool:
        """Wait until a zygote can spawn; False if none can in time."""
        return self._ready.wait(timeout_s)

    def stop(self) -> None:
        """End the zygote, and with it all children."""
        self._stopping.set()
        self._end_zygote()
        self._thread.join(_KILL_TIMEOUT_S)

    def spawn(self, folder: Path, events: int, output: int) -> Child:
        """Start a child for a job's folder; the descriptors stay the caller's to close.

        Raises:
            ZygoteLost: there is no zygote, or it ended meanwhile.
        """
        with self._lock:
            child = Child(self._next_id, self)
            self._next_id += 1
            if self._channel is None or not self._ready.is_set():
                raise ZygoteLost
            self._children[child.id] = child
            message = json.dumps({"op": "spawn", "id": child.id, "folder": str(folder)})
            descriptors = array.array("i", [events, output])
            try:
                self._channel.sendmsg(
                    [message.encode()],
                    [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)],
                )
            except OSError as error:
                del self._children[child.id]
                raise ZygoteLost from error
        if not child.started.wait(_SPAWN_TIMEOUT_S):
            log.error("the zygote does not answer; killing it")
            self._end_zygote()
            child.started.wait()
        if child.pid is None:
            raise ZygoteLost
        return child

    def kill(self, child: Child) -> None:
        """Kill a child; if the zygote does not manage that, kill the zygote, and so all."""
        with self._lock:
            if child.exited.is_set():
                return
            try:
                if self._channel is not None:
                    self._channel.send(json.dumps({"op": "kill", "id": child.id}).encode())
            except OSError:
                log.warning("the zygote is gone; its children go with it")
        if not child.exited.wait(_KILL_TIMEOUT_S):
            log.error("the zygote does not answer; killing it")
            self._end_zygote()
            child.exited.wait()

    def _keep(self) -> None:
        quick_exits = 0
        while not self._stopping.wait(_BACKOFF_S[min(quick_exits, len(_BACKOFF_S) - 1)]):
            began = time.monotonic()
            try:
                self._run_zygote()
            except OSError as error:
                log.error("cannot start the zygote: %s", error)
            quick_exits = 0 if time.monotonic() - began > _STEADY_S else quick_exits + 1

    def _run_zygote(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs:
            process = subprocess.Popen(
                [
                    sys.executable,
                    *(["-P"] if sys.flags.safe_path else []),
                    "-m", "workers.zygote", str(theirs.fileno()), str(os.getpid()),
                ],
                stdin=subprocess.DEVNULL,
                pass_fds=(theirs.fileno(),),
                env=_ENVIRONMENT | {k: os.environ[k] for k in _PASSED_ON if k in os.environ},
                start_new_session=True,  # Ctrl-C is for the worker alone
            )  # fmt: skip
            theirs.close()
            with self._lock:
                self._process, self._channel = process, ours
            try:
                while content := _receive(ours):
                    self._handle(json.loads(content))
            finally:
                process.kill()
                status = process.wait()
                self._forget()
        if not self._stopping.is_set():
            log.warning("the zygote ended with status %s; starting another", status)

    def _handle(self, message: dict[str, Any]) -> None:
        operation = message.pop("op")
        if operation == "ready":
            self.machine = message
            self._on_ready()  # it may find that no job shall run here
            self._ready.set()
            return
        with self._lock:
            child = self._children[message["id"]]
            if operation == "exited":
                del self._children[child.id]
        if operation == "spawned":
            child.pid = message["pid"]
            child.started.set()
        else:
            child.status = message["status"]
            child.exited.set()

    def _forget(self) -> None:
        with self._lock:
            self._ready.clear()
            self._process = self._channel = None
            lost, self._children = list(self._children.values()), {}
        for child in lost:
            child.started.set()
            child.exited.set()

    def _end_zygote(self) -> None:
        with self._lock:
            process = self._process
        if process is not None:
            process.kill()


def _receive(channel: socket.socket) -> bytes:
    try:
        return channel.recv(_MESSAGE_BYTES)
    except ConnectionResetError:
        return b""
