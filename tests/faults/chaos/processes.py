"""What runs below a process, by its role in the service; read from /proc."""

from __future__ import annotations

import ctypes
import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Process:
    """A process, told from a later one with its pid by when it started.

    Roles are launcher, broker, api, worker, zygote, child (a job's process), probe (measures
    memory for a child), orphan, and other.
    """

    pid: int
    parent: int
    started: str
    state: str
    role: str
    attempt: str | None = None
    """Of a child: `<job>-<fence>`."""

    def send(self, number: signal.Signals) -> bool:
        """Send a signal; return whether the process was still there."""
        if _start_time(self.pid) != self.started:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def adopt_orphans() -> None:
    """Let descendants whose parent dies become our children, so that none gets out of sight."""
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def reap_orphans(own: set[int]) -> None:
    """Take leave of adopted processes that have ended; `own` are ours to wait for elsewhere."""
    for pid, (parent, state, _started, _command) in _all().items():
        if parent == os.getpid() and state == "Z" and pid not in own:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)


def descendants() -> list[Process]:
    """Return all living processes below this one, parents first."""
    everything = _all()
    below: dict[int, list[int]] = {}
    for pid, (parent, *_rest) in everything.items():
        below.setdefault(parent, []).append(pid)
    found: list[Process] = []
    todo = [(os.getpid(), "self")]
    while todo:
        parent, role_above = todo.pop()
        for pid in below.get(parent, []):
            _, state, started, command = everything[pid]
            if state in "ZX":
                continue
            role = _role(command, role_above)
            attempt = _attempt(pid) if role == "child" else None
            found.append(Process(pid, parent, started, state, role, attempt))
            todo.append((pid, role))
    return found


def below(top: Process, processes: list[Process]) -> Iterator[Process]:
    """Yield `top` and what it has started, directly or not."""
    ours = {top.pid}
    for process in processes:
        if process.pid == top.pid or process.parent in ours:
            ours.add(process.pid)
            yield process


def _role(command: list[str], role_above: str) -> str:
    if "workers.zygote" in command:
        return {"worker": "zygote", "zygote": "child", "child": "probe"}.get(role_above, "orphan")
    if "valkey-server" in command[0]:
        return "broker"
    for words, role in (
        (("-m", "workers"), "worker"),
        (("-m", "app"), "api"),
        (("-m", "tersor"), "launcher"),
    ):
        if any(pair == words for pair in pairwise(command)):
            return role
    return "other"


def _attempt(pid: int) -> str | None:
    with suppress(OSError):
        # a child stands in work/<job>-<fence>/scratch once it has become one
        folder = Path(f"/proc/{pid}/cwd").readlink()
        if folder.name.startswith("scratch"):
            return folder.parent.name
    return None


def _all() -> dict[int, tuple[int, str, str, list[str]]]:
    """Return pid -> parent, state, start time, command line."""
    found = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                fields = (folder / "stat").read_text().rpartition(")")[2].split()
                command = (folder / "cmdline").read_bytes().decode(errors="replace").split("\0")
                found[int(folder.name)] = (int(fields[1]), fields[0], fields[19], command)
    return found


def _start_time(pid: int) -> str | None:
    entry = None
    with suppress(OSError):
        entry = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return None if entry is None or entry[0] in "ZX" else entry[19]
