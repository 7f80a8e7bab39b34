"""Calls of the kernel that Python has no function for."""

from __future__ import annotations

import ctypes
import os

PR_SET_PDEATHSIG = 1
PR_SET_NO_NEW_PRIVS = 38
PR_GET_NO_NEW_PRIVS = 39

Argument = int | ctypes.Array[ctypes.c_char] | ctypes.Structure | None


def call(number: int, *arguments: Argument) -> int:
    """Make a system call by its number.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.syscall.restype = ctypes.c_long
    passed = [
        ctypes.byref(each) if isinstance(each, ctypes.Array | ctypes.Structure)
        else ctypes.c_long(each or 0)
        for each in arguments
    ]  # fmt: skip
    result = int(libc.syscall(ctypes.c_long(number), *passed))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def control(option: int, value: int = 0) -> int:
    """Call prctl.

    Raises:
        OSError: the kernel refused.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    result = int(libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0))
    if result < 0:
        raise OSError(ctypes.get_errno(), f"prctl({option})")
    return result
