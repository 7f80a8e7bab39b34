"""What code that has taken over a job's process may try. Run as a program, it locks itself down.

`python -m tests.workers.attempts MODE FOLDER` prints `{"stands": …, "did": {attempt: outcome}}`; an
outcome is `done` or the name of the error.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from workers.sandbox import Confinement, Limits, lock_down

# numbers of x86_64; tests of calls by number skip elsewhere
CALLS = {
    "trace the parent": (101, 0x4206, "parent", 0, 0),  # PTRACE_SEIZE, which does not stop it
    "read the parent's memory": (310, "parent", 0, 0, 0, 0, 0),
    "pidfd of the parent": (434, "parent", 0),
    "memfd": (319, "name", 0),
    "shared memory of System V": (29, 0, 2**20, 0o1600),
    "io_uring": (425, 1, "buffer"),
    "userfaultfd": (323, 0),
    "bpf": (321, 0, "buffer", 48),
    "keyring": (250, 0, 0, 0),
    "perf events": (298, "buffer", 0, -1, -1, 0),
    "be another user": (105, 0),
    "mount": (165, "name", "name", "name", 0, 0),
    "fork by number": (57,),
    "vfork by number": (58,),
    "a call of the x32 interface": (0x40000000 + 39,),
    "signal in a thread of the parent": (200, "parent", 0),
    "a new namespace": (272, 0x10000000),  # after all that wants to be root here
}

DEADLY = ("vfork by number", "start a program")
"""What nothing comes back from, where no wall stops it."""


def call(*arguments: int | str, parent: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    values: dict[str, object] = {
        "parent": ctypes.c_long(parent),
        "name": b"/tmp\0",
        "buffer": ctypes.create_string_buffer(4096),
    }
    passed = [values[each] if isinstance(each, str) else ctypes.c_long(each) for each in arguments]
    result = libc.syscall(*passed)
    if result == 0 and arguments[0] in (57, 58):
        os._exit(0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def own_thread(parent: int) -> None:
    done = threading.Event()
    threading.Thread(target=done.set).start()
    assert done.wait(5)


def fork(parent: int) -> None:
    if os.fork() == 0:
        os._exit(0)


def fork_by_clone3(parent: int) -> None:
    arguments = (ctypes.c_uint64 * 11)(*[0] * 4, signal.SIGCHLD, *[0] * 6)
    result = ctypes.CDLL(None, use_errno=True).syscall(435, arguments, 88)
    if result == 0:
        os._exit(0)
    if result < 0:
        raise OSError(ctypes.get_errno(), "")


def attempts(folder: Path) -> dict[str, Callable[[int], object]]:
    """Return attempt by name; each takes the parent's pid."""
    marker, given, out = folder / "marker", folder / "inputs" / "given", folder / "out"
    return {
        # what a job needs
        "read an input": lambda _: given.read_bytes(),
        "write a result": lambda _: (out / "result").write_bytes(b"x"),
        "rename a result": lambda _: (out / "result").rename(out / "renamed"),
        "remove a result": lambda _: (out / "renamed").unlink(),
        "start a thread": own_thread,
        "look at the own process": lambda _: Path("/proc/self/status").read_text(),
        "count processors": lambda _: Path("/sys/devices/system/cpu/online").read_text(),
        # files
        "read a file": lambda _: marker.read_bytes(),
        "read it by /proc": lambda _: Path(f"/proc/self/root{marker}").read_bytes(),
        "read it by ..": lambda _: (out / ".." / "marker").read_bytes(),
        "list a folder": lambda _: list(folder.iterdir()),
        "write a file": lambda _: marker.open("r+b").write(b"X"),
        "truncate a file": lambda _: os.truncate(marker, 0),
        "make a file": lambda _: (folder / "new").write_bytes(b"x"),
        "link a file": lambda _: (out / "linked").hardlink_to(marker),
        "symlink a file": lambda _: (out / "symlinked").symlink_to(marker),
        "change an input": lambda _: given.open("r+b").write(b"X"),
        "change an input's mode": lambda _: given.chmod(0o666),
        "change an input's times": lambda _: os.utime(given, (0, 0)),
        "make a pipe with a name": lambda _: os.mkfifo(out / "fifo"),
        "read the parent's environment": lambda pid: Path(f"/proc/{pid}/environ").read_bytes(),
        "open the parent's memory": lambda pid: Path(f"/proc/{pid}/mem").open("r+b"),
        "remove a file": lambda _: (folder / "removable").unlink(),
        # network
        "a socket": lambda _: socket.socket(),
        "a unix socket": lambda _: socket.socket(socket.AF_UNIX),
        "a pair of sockets": lambda _: socket.socketpair(),
        # processes
        "fork": fork,
        "fork by clone3": fork_by_clone3,
        "signal the parent": lambda pid: os.kill(pid, 0),
        "signal the parent's group": lambda pid: os.killpg(os.getpgid(pid), 0),
        "own a pipe's signals": lambda pid: fcntl.fcntl(0, fcntl.F_SETOWN, pid),
        "slow the parent": lambda pid: os.setpriority(os.PRIO_PROCESS, pid, 1),
        "pin the parent": lambda pid: os.sched_setaffinity(pid, os.sched_getaffinity(0)),
        "lead a session": lambda _: os.setpgid(0, 0),
        # memory
        "a little memory": lambda _: bytearray(2**20),
        "much memory": lambda _: bytearray(2**29),
        "much shared memory": lambda _: mmap.mmap(-1, 2**20),
        "a file in memory": lambda _: Path(f"/dev/shm/tersor-{os.getpid()}").touch(),
        "more of a limit": lambda _: resource.setrlimit(resource.RLIMIT_NOFILE, (64, 2**20)),
        **{
            name: lambda pid, numbers=numbers: call(*numbers, parent=pid)
            for name, numbers in CALLS.items()
        },
        # last, since it would not come back
        "start a program": lambda _: os.execv("/bin/false", ["false"]),
    }


def main(mode: str, folder: Path) -> None:
    parent = os.getppid()
    stands = lock_down(
        Confinement(
            limits=Limits(memory_bytes=2**28, cpu_s=20, file_bytes=2**20, open_files=64),
            readable=(folder / "inputs",),
            writable=(folder / "out",),
            mode=mode,  # type: ignore[arg-type]
        )
    )
    did = {}
    for name, attempt in attempts(folder).items():
        if mode == "off" and name in DEADLY:
            continue
        try:
            attempt(parent)
            did[name] = "done"
        except (OSError, MemoryError, ValueError, OverflowError) as error:
            number = getattr(error, "errno", None)
            did[name] = errno.errorcode[number] if number else type(error).__name__
    sys.stdout.write(json.dumps({"stands": stands, "did": did}))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
