"""The attack of an hour, for twelve seconds: it runs, and finds nothing amiss."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_jobs_submitted_under_random_kills_all_end_once_and_nothing_is_left_over() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults.chaos", "--minutes", "0.2", "--pause", "1.5",
         "--customers", "2", "--seed", "5"],
        capture_output=True, text=True, check=False, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "violations: 0" in done.stdout
    faults = re.search(r"^all +(\d+) ", done.stdout, re.MULTILINE)
    assert faults is not None
    assert int(faults[1]) >= 3, done.stdout
    assert re.search(r"^files downloaded and compared +\d+", done.stdout, re.MULTILINE)


def test_a_process_whose_parent_is_gone_stays_in_sight_until_it_ends() -> None:
    code = """
import signal, subprocess
from tests.faults.chaos.processes import adopt_orphans, descendants, reap_orphans
adopt_orphans()
subprocess.run(["sh", "-c", "sleep 60 &"], check=True)
(orphan,) = descendants()
assert orphan.send(signal.SIGKILL)
while descendants():
    reap_orphans(set())
assert not orphan.send(signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)
