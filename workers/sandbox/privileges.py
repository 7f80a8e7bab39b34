"""Gives up what root, or a program with file capabilities, could do."""

from __future__ import annotations

import ctypes

from workers.sandbox.kernel import PR_GET_NO_NEW_PRIVS, PR_SET_NO_NEW_PRIVS, call, control
from workers.sandbox.syscalls import number_of

_VERSION_3 = 0x20080522


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Capabilities(ctypes.Structure):
    _fields_ = [("words", ctypes.c_uint32 * 6)]


def forbid_new_privileges() -> bool:
    """Make set-user-id programs and file capabilities void."""
    control(PR_SET_NO_NEW_PRIVS, 1)
    return control(PR_GET_NO_NEW_PRIVS) == 1


def drop_capabilities() -> bool:
    """Empty the capability sets: root could lift its limits and signal anyone."""
    call(number_of("capset"), _Header(_VERSION_3, 0), _Capabilities())
    held = _Capabilities()
    call(number_of("capget"), _Header(_VERSION_3, 0), held)
    return not any(held.words)
