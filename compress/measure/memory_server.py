"""The measuring process of `memory.py`: forks a copy of itself for every file.

It takes pickled jobs on stdin, and answers each with a line of JSON: `{"bytes": n}`, or
`{"error": "why not"}`. Copies run code of models that nobody trusts, and so may whoever sends the
jobs: only a copy, behind its walls, opens the pickle, and what it says is taken as data.
"""

from __future__ import annotations

import ctypes
import json
import os
import pickle
import select
import signal
import struct
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, TextIO

from compress.measure.runtimes import warm_up
from compress.spec import Format

_STATUS = Path("/proc/self/status")
_MAPS = Path("/proc/self/maps")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_ANSWER_BYTES = 4096
_RESET_PEAK = "5"  # proc(5): sets VmHWM to VmRSS
_PR_SET_PDEATHSIG = 1
_MADV_POPULATE_READ = 22


HEADER = struct.Struct("<Qd")
"""Before each job: the length of its pickle, and the seconds that it may take."""


@dataclass(frozen=True)
class Job:
    """One file: its runtime, torch's threads, and what loads and runs it."""

    format: Format
    threads: int
    work: Callable[[], object]


def serve(parent_pid: int, confine: Callable[[], object] = lambda: None) -> None:
    """Answer jobs until the parent closes the pipe or ends; `confine` is called in each copy."""
    _die_with(parent_pid)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # what a model prints is no answer
    answers.write(b"{}\n")
    orders = os.fdopen(os.dup(0), "rb")  # sys.stdin may be another file by now
    while header := orders.read(HEADER.size):
        length, limit_s = HEADER.unpack(header)
        job = orders.read(length)
        answers.write(json.dumps(_measure(job, limit_s, confine)).encode() + b"\n")


def _measure(job: bytes, limit_s: float, confine: Callable[[], object]) -> dict[str, Any]:
    read, write = os.pipe()
    server = os.getpid()
    pid = os.fork()
    if pid == 0:
        os.close(read)
        _become_copy(job, server, write, confine)
    os.close(write)
    content = b""
    try:
        while select.select([read], [], [], limit_s)[0]:
            part = os.read(read, _ANSWER_BYTES)
            if not part:
                break
            content = (content + part)[:_ANSWER_BYTES]
        else:
            return {"error": f"It took longer than {limit_s:g} seconds."}
    finally:
        os.close(read)
        os.kill(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
    if not content:
        return {"error": f"Its process ended with status {os.waitstatus_to_exitcode(status)}."}
    try:
        told = json.loads(content)
        if "bytes" in told:
            return {"bytes": int(told["bytes"])}
        return {"error": str(told["error"])}
    except (ValueError, TypeError, KeyError, RecursionError):
        return {"error": "Its process answered nonsense."}


def _become_copy(job: bytes, server: int, write: int, confine: Callable[[], object]) -> NoReturn:
    try:
        _die_with(server)
        os.closerange(3, write)
        os.closerange(write + 1, os.sysconf("SC_OPEN_MAX"))
        with _CLEAR_REFS.open("w") as clear_refs:  # behind the walls it could not be opened
            confine()
            told: dict[str, Any] = {"bytes": peak_bytes(pickle.loads(job), clear_refs)}
    except BaseException as error:
        traceback.print_exc()
        told = {"error": f"{type(error).__name__}: {error}"[:300]}
    try:
        os.write(write, json.dumps(told).encode())
    finally:
        os._exit(0)


def peak_bytes(job: Job, clear_refs: TextIO) -> int:
    """Return by how much the job's work raises this process's resident memory at its highest.

    Args:
        job: What to do.
        clear_refs: This process's file of that name in /proc, to write.
    """
    warm_up(job.format, job.threads)
    settle_memory()
    clear_refs.write(_RESET_PEAK)
    clear_refs.flush()
    before_bytes = _status_bytes("VmRSS")
    kept = job.work()
    peak = _status_bytes("VmHWM") - before_bytes
    del kept
    return peak


def settle_memory() -> None:
    """Give freed memory back, and make the libraries' pages resident.

    Freed memory would be taken again uncounted. A library's page becomes resident when it is first
    touched, so which of them count would hang on what happened to run before. Linux before 5.14
    cannot do the latter; there some MB of code count as the first file's.
    """
    libc = ctypes.CDLL(None)
    libc.malloc_trim(0)
    for line in _MAPS.read_text().splitlines():
        addresses, rights, _, device, *rest = line.split(maxsplit=5)
        if "r" in rights and device != "00:00" and rest[-1].startswith("/"):
            start, end = (int(text, 16) for text in addresses.split("-"))
            libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_POPULATE_READ)


def _status_bytes(field: str) -> int:
    for line in _STATUS.read_text().splitlines():
        name, _, value = line.partition(":")
        if name == field:
            return int(value.split()[0]) * 1024
    raise OSError(f"{_STATUS} has no {field}")


def _die_with(parent_pid: int) -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:
        os._exit(1)
