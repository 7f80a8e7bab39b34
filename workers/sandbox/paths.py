"""What every job's process may read beside its own folder: Python, its libraries, the machine."""

from __future__ import annotations

import os
import site
import sys
import sysconfig
from functools import cache
from pathlib import Path

_LIBRARIES = ("/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/etc/ld.so.cache")
_MACHINE = (
    "/dev/null", "/dev/urandom", "/etc/localtime", "/usr/share/zoneinfo", "/usr/share/fonts",
    "/proc/cpuinfo", "/proc/meminfo", "/proc/stat", "/proc/sys/vm/overcommit_memory",
    "/sys/devices/system/cpu", "/sys/devices/system/node", "/sys/kernel/mm/transparent_hugepage",
)  # fmt: skip
_NVIDIA = (
    "/proc/driver/nvidia", "/proc/devices", "/proc/modules", "/sys/module/nvidia",
    "/sys/module/nvidia_uvm", "/sys/bus/pci/devices", "/etc/nvidia", "/usr/share/nvidia",
    "/usr/local/cuda", "/usr/local/nvidia",
)  # fmt: skip


def machine_paths() -> list[Path]:
    """Return files and folders, missing ones too; the last is this process's own in /proc."""
    return [*_library_paths(), *map(Path, _MACHINE), _own_process()]


def nvidia_paths() -> list[Path]:
    """Return what CUDA's libraries read of the driver; PCI devices are links into /sys/devices."""
    return [*map(Path, _NVIDIA), *Path("/sys/devices").glob("pci*")]


def nvidia_devices() -> list[Path]:
    """Return the device nodes of GPUs and their driver; none without one."""
    found = Path("/dev").glob("nvidia*")
    return sorted(path for path in found if path.is_char_device())


@cache  # asked for in the zygote, so that no job spends time on it
def _library_paths() -> tuple[Path, ...]:
    scheme = sysconfig.get_paths()
    folders = {Path(scheme[name]) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    folders |= {Path(folder) for folder in site.getsitepackages()}
    folders |= {Path(folder) for folder in os.environ.get("LD_LIBRARY_PATH", "").split(":")
                if folder.startswith("/")}  # fmt: skip
    folders |= {Path(folder) for folder in _LIBRARIES}
    folders |= {folder.resolve() for folder in folders}
    # the folder that holds the code may hold the service's data too, so packages alone are added
    for name, module in list(sys.modules.items()):
        if "." not in name:
            for folder in map(Path, getattr(module, "__path__", ())):
                if not any(folder.is_relative_to(known) for known in folders):
                    folders.add(folder)
    return tuple(sorted(folders))


def _own_process() -> Path:
    """Return this process's folder in /proc, and keep it open.

    A rule is about a folder's inode, and the kernel may make another one of a folder in /proc that
    nobody has open.
    """
    os.open("/proc/self", os.O_PATH | os.O_CLOEXEC)
    return Path(f"/proc/{os.getpid()}")
