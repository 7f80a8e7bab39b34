"""Freed memory stays with the process while a model learns, and goes back after."""

from __future__ import annotations

import json
import platform
import subprocess
import sys

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="not glibc"),
]

BYTES = 48 * 2**20
"""More than glibc keeps by itself."""
PROGRAM = f"""
import json, resource
from pathlib import Path
import numpy as np
from compress.train.allocator import kept_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.ones({BYTES}, np.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()

told = {{"before": [faults() for _ in range(5)]}}
with kept_memory():
    told["inside"] = [faults() for _ in range(5)]
    held = resident()
print(json.dumps(told | {{"after": [faults() for _ in range(5)], "freed": held - resident()}}))
"""


def test_pages_of_a_freed_block_are_used_again_while_a_model_learns() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=True
    )
    told = json.loads(done.stdout)
    anew = min(told["before"])
    assert anew > 0
    assert min(told["inside"]) < anew / 4
    assert min(told["after"]) > anew / 2
    assert told["freed"] > BYTES / 2
