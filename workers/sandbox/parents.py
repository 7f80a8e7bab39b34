"""Ends a process with the one that started it."""

from __future__ import annotations

import os
import signal

from workers.sandbox.kernel import PR_SET_PDEATHSIG, control


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; exit if it has ended already."""
    control(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        os._exit(1)
