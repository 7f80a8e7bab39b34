"""Writes seccomp filters: classic BPF over the number and the arguments of a system call."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

ALLOW = 0x7FFF0000
KILL = 0x80000000
_ERRNO = 0x00050000
REFUSE = _ERRNO | errno.EPERM
UNKNOWN = _ERRNO | errno.ENOSYS

_LOAD, _EQUAL, _AND, _RETURN = 0x20, 0x15, 0x54, 0x06
_NUMBER_AT, _ARCH_AT, _ARGUMENTS_AT = 0, 4, 16


@dataclass(frozen=True)
class Word:
    """The lower half of an argument: allowed where, under `mask`, it is one of `values`."""

    argument: int
    values: tuple[int, ...]
    mask: int = 0xFFFFFFFF


def write_filter(
    arch: int,
    allowed: Iterable[int],
    conditions: Mapping[int, Sequence[Word]],
    unknown: Iterable[int],
) -> bytes:
    """Return a program that allows the listed calls and refuses all others with EPERM.

    Args:
        arch: The only architecture; calls of another one kill the process.
        allowed: Numbers of calls that are allowed.
        conditions: Numbers that are allowed where any of the words fits.
        unknown: Numbers that are answered as if this kernel did not know them.
    """
    program = [
        _step(_LOAD, _ARCH_AT),
        _step(_EQUAL, arch, 1, 0),
        _step(_RETURN, KILL),
        _step(_LOAD, _NUMBER_AT),
    ]
    for number in allowed:
        program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, ALLOW)]
    for number in unknown:
        program += [_step(_EQUAL, number, 0, 1), _step(_RETURN, UNKNOWN)]
    for number, words in conditions.items():
        body = []
        for word in words:
            body += [
                _step(_LOAD, _ARGUMENTS_AT + 8 * word.argument),  # little-endian: low half first
                _step(_AND, word.mask),
            ]
            for value in word.values:
                body += [_step(_EQUAL, value, 0, 1), _step(_RETURN, ALLOW)]
        body.append(_step(_RETURN, REFUSE))
        program += [_step(_EQUAL, number, 0, len(body)), *body]
    program.append(_step(_RETURN, REFUSE))
    return b"".join(program)


def _step(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("<HBBI", code, if_true, if_false, value)
