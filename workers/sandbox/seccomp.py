"""seccomp: which system calls a process may make, by a list of those that computing needs.

Left out: programs, processes, sockets, other processes' memory, memory that no limit counts
(memfd, shared anonymous), links, devices, modes and owners of files, the kernel's own rooms.
A job on a GPU may also speak to NVIDIA's driver.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket

from workers.sandbox.bpf import Word, write_filter
from workers.sandbox.kernel import call
from workers.sandbox.syscalls import AUDIT_ARCH, find_number, machine, number_of

_SET_MODE_FILTER = 1
_CLONE_THREAD, _CLONE_NEW_NAMESPACES = 0x10000, 0x7E020000
_MAP_SHARED, _MAP_ANONYMOUS = 0x01, 0x20
_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA = 15, 16, 0x53564D41
_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONCLEX, _FIOCLEX = 0x5401, 0x5413, 0x541B, 0x5450, 0x5451
_PLAIN_FCNTL = (0, 1, 2, 3, 4, 5, 6, 7, 36, 37, 38, 1030, 1032)
"""Duplicates, flags, locks, a pipe's size. Not F_SETOWN, which sends signals to anyone."""

# NVIDIA's open kernel modules: nv-ioctl-numbers.h has type 'F'; uvm_ioctl.h has numbers without a
# type, and two of its own. A filter cannot see which file is meant, but no other has these.
_NVIDIA_IOCTLS = (
    Word(1, (0x4600,), 0xFF00),
    Word(1, (0,), 0xFFFFFF00),
    Word(1, (0x30000001, 0x30000002)),
)
FOR_CUDA = ("mbind", "set_mempolicy", "getpriority", "timerfd_create", "timerfd_settime")

ALLOWED = """
    read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close close_range
    open openat creat stat lstat fstat newfstatat statx access faccessat faccessat2
    readlink readlinkat getcwd chdir fchdir getdents getdents64 statfs fstatfs
    mkdir mkdirat unlink unlinkat rmdir rename renameat renameat2 ftruncate fallocate
    fsync fdatasync sync_file_range flock fadvise64 copy_file_range sendfile
    dup dup2 dup3 pipe pipe2 poll ppoll select pselect6
    epoll_create1 epoll_ctl epoll_wait epoll_pwait eventfd2
    munmap mremap mprotect madvise mincore msync brk membarrier get_mempolicy
    rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait sigaltstack
    futex set_robust_list get_robust_list rseq set_tid_address restart_syscall
    getpid gettid getppid getuid geteuid getgid getegid getgroups getpgrp getpgid getsid
    getresuid getresgid exit exit_group uname sysinfo getrandom umask arch_prctl getcpu
    sched_yield sched_getaffinity sched_getparam sched_getscheduler
    sched_get_priority_max sched_get_priority_min
    nanosleep clock_nanosleep clock_gettime clock_getres gettimeofday time times
    getrusage getrlimit wait4 waitid
""".split()  # noqa: SIM905
FOR_FORKING = """
    kill prctl seccomp capget capset prlimit64
    landlock_create_ruleset landlock_add_rule landlock_restrict_self
""".split()  # noqa: SIM905
"""What the measuring process needs to start copies of itself and to lock these down."""


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("steps", ctypes.c_char_p)]


def filter_calls(*, forks: bool = False, cuda: bool = False) -> bool:
    """Put up the filter, for this thread and those that it starts; True if it stands."""
    name = machine()
    number = find_number("seccomp")
    if name is None or number is None:
        return False
    steps = write_filter(AUDIT_ARCH[name], *_rules(forks=forks, cuda=cuda))
    try:
        call(number, _SET_MODE_FILTER, 0, _Program(len(steps) // 8, steps))
    except OSError as error:
        if error.errno in (errno.ENOSYS, errno.EINVAL):
            return False  # not built into this kernel
        raise
    return _is_shut()


def _rules(*, forks: bool, cuda: bool) -> tuple[list[int], dict[int, list[Word]], list[int]]:
    """Return numbers allowed, allowed by an argument, and unknown."""
    pid = os.getpid()
    conditions = {
        "mmap": Word(3, (0, _MAP_SHARED, _MAP_ANONYMOUS), _MAP_SHARED | _MAP_ANONYMOUS),
        "clone": Word(0, (0,), _CLONE_NEW_NAMESPACES)
        if forks
        else Word(0, (_CLONE_THREAD,), _CLONE_THREAD | _CLONE_NEW_NAMESPACES),
        "kill": Word(0, (pid,)),
        "tgkill": Word(0, (pid,)),
        "prlimit64": Word(0, (0, pid)),
        "sched_setaffinity": Word(0, (0,)),
        "prctl": Word(0, (_PR_SET_NAME, _PR_GET_NAME, _PR_SET_VMA)),
        "ioctl": Word(1, (_TCGETS, _TIOCGWINSZ, _FIONREAD, _FIONCLEX, _FIOCLEX)),
        "fcntl": Word(1, _PLAIN_FCNTL),
    }
    if forks:  # its copies have pids of their own, and get the narrow filter on top
        conditions["tgkill"] = Word(0, (0,), 0)
        for name in FOR_FORKING:
            conditions.pop(name, None)
    words = {number_of(name): [word] for name, word in conditions.items()}
    allowed = [*ALLOWED, *(FOR_FORKING if forks else ()), *(FOR_CUDA if cuda else ())]
    if cuda:
        words[number_of("ioctl")] += _NVIDIA_IOCTLS
    return (
        [number for name in allowed if (number := find_number(name)) is not None],
        words,
        [number_of("clone3")],  # its flags lie in memory, unseen; the C library then uses clone
    )


def _is_shut() -> bool:
    try:
        socket.socket().close()
    except PermissionError:
        return True
    return False
