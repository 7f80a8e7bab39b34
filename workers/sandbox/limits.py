"""What a job's process may use, held by the kernel's rlimits."""

from __future__ import annotations

import resource
from dataclasses import dataclass
from pathlib import Path

_STACK_BYTES = 8 * 2**20
"""Linux's usual one; whoever started the worker may have lifted it (make does), and then a model
whose code is nested without end fills the memory instead of ending at once."""


@dataclass(frozen=True)
class Limits:
    """What a job's process may use. `cpu_s` is processor time, over all its threads."""

    memory_bytes: int
    cpu_s: int
    file_bytes: int
    open_files: int = 256


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


def _data_bytes() -> int:
    with Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmData:"):
                return int(line.split()[1]) * 1024
    return 0
