from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

LOCKED = """
import json, os, resource, sys
from workers.sandbox import Limits, lock_down
stands = lock_down(Limits(memory_bytes=64 * 2**20, cpu_s=1, file_bytes=4096, open_files=20))
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
    "stands": stands,
    "fits": attempt(lambda: bytearray(32 * 2**20)),
    "memory": attempt(lambda: bytearray(128 * 2**20)),
    "file": attempt(write),
    "open": attempt(open_many),
}), flush=True)
while True:
    pass
"""


def test_each_limit_holds(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOCKED, str(tmp_path / "file")],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    seen = json.loads(done.stdout)
    assert seen == {
        "stands": {"rlimits": True, "no_new_privs": True},
        "fits": "allowed",
        "memory": ["MemoryError", None],
        "file": ["OSError", 27],  # EFBIG
        "open": ["OSError", 24],  # EMFILE
    }
    assert done.returncode < 0, "the endless loop is ended by its processor time"
