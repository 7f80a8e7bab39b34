"""Short measurements for the jobs of a test's own processes."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = str(Path(__file__).parent)


@pytest.fixture(autouse=True)
def brief_jobs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers that tests of faults start take it from the environment."""
    if request.node.get_closest_marker("faults"):
        monkeypatch.setenv("PYTHONPATH", FOLDER)
