"""Landlock: which files a process may open, and whom it may signal and call.

It covers the calling thread and the threads that this starts later, so it goes up while there is
one thread. https://docs.kernel.org/userspace-api/landlock.html
"""

from __future__ import annotations

import ctypes
import os
import stat
from collections.abc import Iterable
from pathlib import Path

from workers.sandbox.kernel import call
from workers.sandbox.syscalls import find_number, number_of

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR, _REMOVE_DIR, _REMOVE_FILE = (1 << n for n in range(6))
_MAKE_DIR, _MAKE_REG, _REFER, _TRUNCATE = 1 << 7, 1 << 8, 1 << 13, 1 << 14
_IOCTL_DEVICE = 1 << 15
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many of the rights to files, counted from the lowest bit, exist since which version."""
_NET_SINCE, _SCOPES_SINCE = 4, 6
_ALL_NET, _ALL_SCOPES = 0b11, 0b11  # bind and connect; abstract unix sockets and signals

_READ = _READ_FILE | _READ_DIR
_WRITE = (
    _READ | _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_DIR | _MAKE_REG | _REFER | _TRUNCATE
)
"""No devices, sockets, pipes or symbolic links."""
_USE = _READ_FILE | _WRITE_FILE | _IOCTL_DEVICE
_ON_FILES = _EXECUTE | _WRITE_FILE | _READ_FILE | _TRUNCATE | _IOCTL_DEVICE
_VERSION_FLAG = 1
_PATH_BENEATH = 1


class _Ruleset(ctypes.Structure):
    _fields_ = [
        ("fs", ctypes.c_uint64),
        ("net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    ]


class _PathBeneath(ctypes.Structure):
    _pack_ = 1
    _fields_ = [("allowed", ctypes.c_uint64), ("parent", ctypes.c_int32)]


def landlock_version() -> int:
    """Return the kernel's version of Landlock, 0 without it."""
    number = find_number("landlock_create_ruleset")
    if number is None:
        return 0
    try:
        return call(number, None, 0, _VERSION_FLAG)
    except OSError:  # not built in, or not enabled
        return 0


def restrict_files(
    readable: Iterable[Path], writable: Iterable[Path], devices: Iterable[Path] = ()
) -> bool:
    """Let this process open nothing but what lies at or beneath the paths; missing ones pass.

    Devices may be read, written, and spoken to by ioctl.
    Also, as far as the kernel knows these: bind and connect no TCP port, and signal nobody outside.
    """
    version = landlock_version()
    if version == 0 or len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        return False
    handled = (1 << max(bits for since, bits in _RIGHTS_OF_ABI.items() if since <= version)) - 1
    ruleset = _Ruleset(
        handled,
        _ALL_NET if version >= _NET_SINCE else 0,
        _ALL_SCOPES if version >= _SCOPES_SINCE else 0,
    )
    size = 8 * (3 if version >= _SCOPES_SINCE else 2 if version >= _NET_SINCE else 1)
    rules = call(number_of("landlock_create_ruleset"), ruleset, size, 0)
    try:
        for paths, rights in ((readable, _READ), (writable, _WRITE), (devices, _USE)):
            for path in paths:
                _allow(rules, path, rights & handled)
        call(number_of("landlock_restrict_self"), rules, 0)
    finally:
        os.close(rules)
    return _is_shut()


def _allow(rules: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            rights &= _ON_FILES
        rule = _PathBeneath(rights, descriptor)
        call(number_of("landlock_add_rule"), rules, _PATH_BENEATH, rule, 0)
    finally:
        os.close(descriptor)


def _is_shut() -> bool:
    try:
        os.close(os.open("/", os.O_RDONLY))
    except PermissionError:
        return True
    return False
