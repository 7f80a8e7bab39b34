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
