from __future__ import annotations

import json
import os
import platform
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from workers.sandbox import LAYERS, missing_layers
from workers.sandbox.bpf import Word, write_filter
from workers.sandbox.landlock import landlock_version
from workers.sandbox.seccomp import ALLOWED, FOR_CUDA, FOR_FORKING
from workers.sandbox.syscalls import NUMBERS

NEEDED = (
    "read an input", "write a result", "rename a result", "remove a result", "start a thread",
    "look at the own process", "count processors", "a little memory",
)  # fmt: skip
FILES = (
    "read a file", "read it by /proc", "read it by ..", "list a folder", "write a file",
    "truncate a file", "make a file", "link a file", "symlink a file", "change an input",
    "read the parent's environment", "open the parent's memory", "remove a file",
    "a file in memory",
)  # fmt: skip
HARMLESS_TO_TRY = {
    "read the parent's memory", "bpf", "keyring", "perf events", "userfaultfd", "io_uring",
    "trace the parent", "a call of the x32 interface", "mount", "signal the parent's group",
}  # fmt: skip
"""What may fail, for its made-up arguments or for want of a kernel's part, without any wall too."""
pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64", reason="attempts by the numbers of x86_64"
)


def try_all(mode: str, folder: Path) -> dict[str, Any]:
    for name in ("inputs", "out"):
        (folder / name).mkdir()
    for path in ("marker", "removable", "inputs/given"):
        (folder / path).write_bytes(b"secret")
    done = subprocess.run(
        [sys.executable, "-m", "tests.workers.attempts", mode, str(folder)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=True,
        env=dict(os.environ) | {"OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    seen: dict[str, Any] = json.loads(done.stdout)
    return seen


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("locked")
    return folder, try_all("on", folder)


@pytest.fixture(scope="module")
def missing(locked: tuple[Path, dict[str, Any]]) -> list[str]:
    """Layers that this kernel lacks."""
    return missing_layers(locked[1]["stands"])


def test_a_job_can_do_what_it_needs(locked: tuple[Path, dict[str, Any]]) -> None:
    assert {name: locked[1]["did"][name] for name in NEEDED} == dict.fromkeys(NEEDED, "done")


def test_files_outside_are_neither_read_nor_changed(
    locked: tuple[Path, dict[str, Any]], missing: list[str]
) -> None:
    if "landlock" in missing:
        pytest.skip("this kernel has no Landlock")
    folder, seen = locked
    got = {name: seen["did"][name] for name in FILES}
    assert set(got.values()) <= {"EACCES", "EPERM", "EXDEV"}, got
    assert (folder / "marker").read_bytes() == b"secret"
    assert (folder / "inputs" / "given").read_bytes() == b"secret"
    assert sorted(path.name for path in folder.iterdir()) == [
        "inputs", "marker", "out", "removable",
    ]  # fmt: skip
    assert list((folder / "out").iterdir()) == []


def test_nothing_else_that_was_tried_came_about(
    locked: tuple[Path, dict[str, Any]], missing: list[str]
) -> None:
    """Network, processes, memory that no limit counts, the kernel's own rooms."""
    if missing:
        pytest.skip(f"this kernel lacks {missing}")
    got = {name: end for name, end in locked[1]["did"].items() if name not in NEEDED}
    assert got.pop("fork by clone3") == "ENOSYS", "so that the C library falls back to clone"
    assert got.pop("much memory") == "MemoryError"
    assert got.pop("more of a limit") in ("EPERM", "ValueError")
    for name in FILES:
        got.pop(name)
    assert got == dict.fromkeys(got, "EPERM")


def test_the_attempts_are_real(
    locked: tuple[Path, dict[str, Any]], tmp_path: Path, missing: list[str]
) -> None:
    """Without the walls they come about, so that it was the walls that stopped them."""
    seen = try_all("off", tmp_path)
    assert missing_layers(seen["stands"]) == ["landlock", "capabilities", "seccomp"]
    stopped = {name for name, end in seen["did"].items() if end != "done"}
    assert stopped <= HARMLESS_TO_TRY | {"much memory", "more of a limit"}, seen
    assert not (tmp_path / "removable").exists()
    assert (tmp_path / "marker").read_bytes() != b"secret"


LIMITED = """
import json, sys
from workers.sandbox import Confinement, Limits, lock_down
limits = Limits(memory_bytes=64 * 2**20, cpu_s=1, file_bytes=4096, open_files=20)
lock_down(Confinement(limits=limits, mode="off"))
def attempt(call):
    try:
        call()
    except (MemoryError, OSError) as error:
        return type(error).__name__, getattr(error, "errno", None)
    return "allowed"
def write():
    with open(sys.argv[1], "wb", buffering=0) as file:
        for _ in range(3):
            file.write(b"x" * 4096)
def open_many():
    held = [open("/dev/null") for _ in range(30)]
print(json.dumps({
    "fits": attempt(lambda: bytearray(32 * 2**20)),
    "memory": attempt(lambda: bytearray(128 * 2**20)),
    "file": attempt(write),
    "open": attempt(open_many),
}), flush=True)
while True:
    pass
"""


@pytest.mark.slow
def test_each_limit_holds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(tmp_path / "file")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert json.loads(done.stdout) == {
        "fits": "allowed",
        "memory": ["MemoryError", None],
        "file": ["OSError", 27],  # EFBIG
        "open": ["OSError", 24],  # EMFILE
    }
    assert done.returncode < 0, "the endless loop is ended by its processor time"


REQUIRED = """
import sys, threading
from workers.sandbox import Confinement, Limits, SandboxIncomplete, lock_down
threading.Thread(target=threading.Event().wait, daemon=True).start()  # keeps Landlock from covering
limits = Limits(memory_bytes=2**28, cpu_s=9, file_bytes=4096)
try:
    lock_down(Confinement(limits=limits, mode="require"))
except SandboxIncomplete as error:
    print(error)
"""


def test_require_refuses_to_go_on_without_a_layer() -> None:
    done = subprocess.run(
        [sys.executable, "-c", REQUIRED], capture_output=True, text=True, timeout=30, check=True
    )
    assert "landlock" in done.stdout


def test_what_this_machine_has_is_what_it_reports(missing: list[str]) -> None:
    assert ("landlock" in missing) == (landlock_version() == 0)
    assert resource.getrlimit(resource.RLIMIT_CORE)  # this process itself is free
    assert {name for name, _ in LAYERS} >= set(missing)


def test_every_call_that_is_listed_has_a_number() -> None:
    for name in (*ALLOWED, *FOR_FORKING, *FOR_CUDA):
        x86, _ = NUMBERS[name]
        assert x86 is not None
    arm = [numbers[1] for numbers in NUMBERS.values() if numbers[1] is not None]
    assert len(set(arm)) == len(arm)
    assert not {"ptrace", "execve", "socket", "memfd_create"} & set(ALLOWED + FOR_FORKING)


def test_a_filter_lets_through_what_it_says() -> None:
    """Against an interpreter of the five steps that are used."""
    program = write_filter(7, [1, 2], {5: [Word(1, (8, 0), 0x18), Word(2, (3,))]}, [9])
    steps = [
        (int.from_bytes(program[at : at + 2], "little"), program[at + 2], program[at + 3],
         int.from_bytes(program[at + 4 : at + 8], "little"))
        for at in range(0, len(program), 8)
    ]  # fmt: skip

    def run(arch: int, number: int, *arguments: int) -> int:
        words = {0: number, 4: arch} | {16 + 8 * at: value for at, value in enumerate(arguments)}
        held, at = 0, 0
        while True:
            code, if_true, if_false, value = steps[at]
            at += 1
            if code == 0x20:
                held = words[value]
            elif code == 0x54:
                held &= value
            elif code == 0x15:
                at += if_true if held == value else if_false
            else:
                assert code == 0x06
                return value

    allow, kill, refuse, unknown = 0x7FFF0000, 0x80000000, 0x50001, 0x50026
    assert run(8, 1) == kill
    assert [run(7, number) for number in (1, 2, 3, 9)] == [allow, allow, refuse, unknown]
    assert [run(7, 5, 0, word, 0) for word in (0, 8, 16, 24, 8 | 4)] == [
        allow, allow, refuse, refuse, allow,
    ]  # fmt: skip
    assert [run(7, 5, 0, 16, word) for word in (2, 3)] == [refuse, allow]
