"""The walls around a job's process, layer by layer, and which of them stand on this machine.

Each layer puts up its wall and then asks the kernel whether it stands; a layer that the kernel
lacks is reported, never assumed. Layers are added to `LAYERS`, in the order they go up.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_STACK_BYTES = 8 * 2**20
"""Linux's usual one; whoever started the worker may have lifted it (make does), and then a model
whose code is nested without end fills the memory instead of ending at once."""
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39


@dataclass(frozen=True)
class Limits:
    """What a job's process may use. `cpu_s` is processor time, over all its threads."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    open_files: int = 256


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; exit if it has ended already."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent_pid:
        os._exit(1)


def lock_down(limits: Limits) -> dict[str, bool]:
    """Put up every layer around this process, for good; return which of them stand."""
    return {name: put_up(limits) for name, put_up in LAYERS}


def limit_resources(limits: Limits) -> bool:
    """Set rlimits, soft and hard. DATA counts private writable memory, not mapped input files."""
    wanted = {
        # what the process came with (torch's own data) does not count against the job
        resource.RLIMIT_DATA: limits.memory_bytes + _data_bytes(),
        resource.RLIMIT_CPU: limits.cpu_s,
        resource.RLIMIT_FSIZE: limits.file_bytes,
        resource.RLIMIT_NOFILE: limits.open_files,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_STACK: _STACK_BYTES,
    }
    for kind, value in wanted.items():
        hard = resource.getrlimit(kind)[1]
        value = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(kind, (value, value))
        if resource.getrlimit(kind) != (value, value):
            return False
    return True


def forbid_new_privileges(_limits: Limits) -> bool:
    """Make set-user-id programs and file capabilities void."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    return bool(libc.prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) == 1)


LAYERS: tuple[tuple[str, Callable[[Limits], bool]], ...] = (
    ("rlimits", limit_resources),
    ("no_new_privs", forbid_new_privileges),
)


def _data_bytes() -> int:
    with Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
