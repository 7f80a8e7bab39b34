"""The process that has torch imported and forks one child per job: tenths of a second, not two.

It is single-threaded and runs no operator, so that a fork of it is sound. It speaks with its
worker over a socket of messages (JSON, and descriptors for `spawn`):

    worker -> {"op": "spawn", "id", "folder"} + [events, output] | {"op": "kill", "id"}
    zygote -> {"op": "ready", …} | {"op": "spawned", "id", "pid"} | {"op": "exited", "id", "status"}

It ends with its worker, and its children with it, on kill -9 too.
"""

from __future__ import annotations

import array
import contextlib
import gc
import json
import os
import select
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import torch._dynamo  # torch imports it to run without numbers and to train, which takes seconds

from workers.child import become_child
from workers.sandbox import Confinement, Limits, die_with_parent, lock_down

_MESSAGE_BYTES = 65536


class Zygote:
    """Forks, kills and reaps the processes of jobs."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._children: dict[int, int] = {}  # pid -> id
        self._wake_read, self._wake_write = socket.socketpair()
        for end in (self._wake_read, self._wake_write):
            end.setblocking(False)

    def serve(self) -> None:
        """Answer the worker until it closes the channel."""
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(self._wake_write.fileno(), warn_on_full_buffer=False)
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        poll.register(self._wake_read, select.POLLIN)
        while True:
            ready = dict(poll.poll())
            if self._wake_read.fileno() in ready:
                with contextlib.suppress(BlockingIOError):
                    self._wake_read.recv(4096)
                self._reap()
            if self._channel.fileno() in ready and not self._answer():
                for pid in self._children:
                    _kill_group(pid)
                return

    def _answer(self) -> bool:
        content, ancillary, _flags, _address = self._channel.recvmsg(
            _MESSAGE_BYTES, socket.CMSG_SPACE(2 * array.array("i").itemsize)
        )
        if not content:
            return False
        message = json.loads(content)
        if message["op"] == "spawn":
            events, output = _descriptors(ancillary)
            self._spawn(message["id"], Path(message["folder"]), events, output)
        else:
            for pid, child_id in self._children.items():
                if child_id == message["id"]:
                    _kill_group(pid)
        return True

    def _spawn(self, child_id: int, folder: Path, events: int, output: int) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            held = [self._channel, self._wake_read, self._wake_write]
            become_child(parent, folder, events, output, held)
        os.close(events)
        os.close(output)
        self._children[pid] = child_id
        self._send(op="spawned", id=child_id, pid=pid)

    def _reap(self) -> None:
        for pid, child_id in list(self._children.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            _kill_group(pid)  # while the pid is still ours: whatever the job left behind
            _, status = os.waitpid(pid, 0)
            del self._children[pid]
            self._send(op="exited", id=child_id, status=os.waitstatus_to_exitcode(status))

    def _send(self, **content: Any) -> None:
        self._channel.send(json.dumps(content).encode())


def describe_machine() -> dict[str, Any]:
    """Return what jobs can count on here: torch, devices, and the walls that really stand."""
    return {"torch": torch.__version__, "devices": ["cpu"], "sandbox": _try_sandbox()}


def _try_sandbox() -> dict[str, bool]:
    """Put the walls up in a process of its own, and return which of them stood."""
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            limits = Limits(memory_bytes=2**30, cpu_s=60, file_bytes=2**20)
            os.write(write, json.dumps(lock_down(Confinement(limits=limits))).encode())
        finally:
            os._exit(0)
    os.close(write)
    with open(read, "rb") as answer:  # noqa: PTH123 - a descriptor, not a path
        content = answer.read()
    os.waitpid(pid, 0)
    walls: dict[str, bool] = json.loads(content or b"{}")
    return walls


def _kill_group(pid: int) -> None:
    for kill in (os.killpg, os.kill):  # before its setsid, a child leads no group yet
        with contextlib.suppress(ProcessLookupError):
            kill(pid, signal.SIGKILL)


def _descriptors(ancillary: list[tuple[int, int, bytes]]) -> tuple[int, int]:
    received = array.array("i")
    for level, kind, content in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            received.frombytes(content)
    events, output = received
    return events, output


def main(arguments: list[str]) -> None:
    """Serve the worker `parent_pid` on the inherited socket `descriptor`."""
    descriptor, parent_pid = map(int, arguments)
    die_with_parent(parent_pid)
    channel = socket.socket(fileno=descriptor)
    channel.set_inheritable(False)
    zygote = Zygote(channel)
    gc.collect()
    gc.freeze()  # or the children's collections would copy all of torch's objects
    channel.send(json.dumps({"op": "ready", **describe_machine()}).encode())
    zygote.serve()


if __name__ == "__main__":
    main(sys.argv[1:])
