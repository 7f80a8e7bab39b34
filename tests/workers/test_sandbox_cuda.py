"""What a job on a GPU may do beside: proven with other devices, since few machines have a GPU."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from workers.sandbox import Confinement, Limits, SandboxIncomplete, lock_down
from workers.sandbox.landlock import landlock_version
from workers.sandbox.paths import nvidia_devices

LIMITS = Limits(memory_bytes=2**28, cpu_s=9, file_bytes=4096)
CALLS = """
import errno, fcntl, json, os, sys
from workers.sandbox import Confinement, Limits, lock_down
null = os.open("/dev/null", os.O_RDONLY)
limits = Limits(memory_bytes=2**28, cpu_s=9, file_bytes=4096)
lock_down(Confinement(limits=limits, cuda=sys.argv[1] == "cuda"))
def ioctl(number):
    try:
        fcntl.ioctl(null, number)
    except OSError as error:
        return errno.errorcode[error.errno]
numbers = {"nvidia": 0xC020462A, "uvm": 39, "uvm starts": 0x30000001, "type on a terminal": 0x5412,
           "format a disk": 0x1277}
print(json.dumps({name: ioctl(number) for name, number in numbers.items()}))
"""
DEVICES = """
import json
from pathlib import Path
from workers.sandbox.landlock import restrict_files
stands = restrict_files([Path("/usr/lib")], [], [Path("/dev/zero")])
def attempt(path):
    try:
        with open(path, "r+b", buffering=0) as file:
            return len(file.read(8)), file.write(b"x")
    except OSError as error:
        return type(error).__name__
print(json.dumps([stands, attempt("/dev/zero"), attempt("/dev/full")]))
"""


def run(program: str, *arguments: str) -> object:
    done = subprocess.run(
        [sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


@pytest.mark.parametrize("profile", ["cpu", "cuda"])
def test_only_a_gpu_job_may_speak_to_the_driver(profile: str) -> None:
    reached = "ENOTTY" if profile == "cuda" else "EPERM"  # /dev/null knows none of these
    got = run(CALLS, profile)
    if got == dict.fromkeys(got, "ENOTTY"):  # type: ignore[call-overload]
        pytest.skip("this kernel has no seccomp")
    assert got == {
        "nvidia": reached, "uvm": reached, "uvm starts": reached,
        "type on a terminal": "EPERM", "format a disk": "EPERM",
    }  # fmt: skip


def test_devices_that_are_named_open_and_others_do_not() -> None:
    if landlock_version() == 0:
        pytest.skip("this kernel has no Landlock")
    assert run(DEVICES) == [True, [8, 1], "PermissionError"]


def test_require_refuses_gpu_jobs() -> None:
    with pytest.raises(SandboxIncomplete, match="GPU"):
        lock_down(Confinement(limits=LIMITS, cuda=True, mode="require"))


def test_device_nodes_are_nvidias_alone() -> None:
    assert all(path.name.startswith("nvidia") for path in nvidia_devices())
