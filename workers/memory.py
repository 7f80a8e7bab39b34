"""How much memory one job may use."""

from __future__ import annotations

import os
from pathlib import Path

from app.settings import Settings

_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUP = Path("/proc/self/cgroup")


def memory_per_job(settings: Settings, slots: int) -> int:
    """Return the bytes that each of `slots` jobs may use: the setting, or its share.

    All slots together get three quarters of what there is; the rest is for everybody else.
    """
    return settings.worker.memory_bytes or available_bytes() * 3 // 4 // slots


def available_bytes() -> int:
    """Return the bytes this process and its children can have: the machine's, or a cgroup's."""
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return min([machine, *cgroup_limits(_CGROUPS, _OWN_CGROUP)])


def cgroup_limits(root: Path, own: Path) -> list[int]:
    """Return the limits on memory (cgroup v2) of our group and those around it.

    Args:
        root: Where the groups are mounted; in a container that is the container's own group.
        own: File that names our group, as `0::/path`.
    """
    try:
        lines = own.read_text().splitlines()
    except OSError:
        lines = []
    name = next((line[3:].strip("/") for line in lines if line.startswith("0::")), "")
    group = root / name
    limits = []
    for folder in (group, *group.parents):
        if not folder.is_relative_to(root):
            break
        try:
            text = (folder / "memory.max").read_text().strip()
        except OSError:  # the machine's root group has none
            continue
        if text.isdigit():  # else it says max
            limits.append(int(text))
    return limits
