"""The demo holds what it claims, and fails loudly when it does not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

DEMO = Path(__file__).parents[2] / "benchmarks" / "demo.py"


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_demo_ends_well_with_its_table_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(DEMO)], capture_output=True, text=True, check=False, timeout=500,
        cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "HOME": str(tmp_path), "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert "original" in done.stdout
    assert "model.int8.torchscript.pt" in done.stdout
    assert done.stdout.count("  ok  ") == 7
    assert list(tmp_path.glob("tersor-demo-*")) == []


@pytest.mark.slow
def test_a_claim_that_does_not_hold_ends_the_demo_with_status_1() -> None:
    code = (
        "import runpy, sys; demo = runpy.run_path(sys.argv[1])\n"
        "try:\n    demo['check']('size', False, '1 and 2')\n"
        "except demo['CheckFailed'] as error:\n    sys.exit(f'the demo failed: {error}')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(DEMO)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the demo failed: size: 1 and 2" in done.stderr
