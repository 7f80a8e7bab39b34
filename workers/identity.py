"""Who owns a job: a name that tells others on the same host whether its process still lives."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def own_name() -> str:
    """Return `<boot id>/<pid namespace>/<pid>/<start time>` of this process.

    A pid alone is reused; with its start time it is not, and the first two parts say where a pid
    means anything. So a sweeper beside a dead worker need not wait for the lease to run out.
    """
    pid = os.getpid()
    return f"{_scope()}/{pid}/{_start_time(pid)}"


def is_known_dead(name: str | None) -> bool:
    """Return True only if the named process ran here (host, pid namespace) and has ended."""
    scope, _, process = (name or "").rpartition("/")
    scope, _, pid = scope.rpartition("/")
    if scope != _scope() or not pid.isdigit():
        return False
    return _start_time(int(pid)) != process


@lru_cache(maxsize=1)
def _scope() -> str:
    boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return f"{boot_id}/{Path('/proc/self/ns/pid').stat().st_ino}"


def _start_time(pid: int) -> str | None:
    """Return the start in clock ticks since boot; None for a process that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces
    state, start_time = fields[0], fields[19]
    return None if state in "ZX" else start_time
