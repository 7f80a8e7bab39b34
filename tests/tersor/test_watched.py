"""A watched process, without the service."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tersor.watched import Watched

_LIMIT_S = 0.3


@pytest.fixture
def process(tmp_path: Path) -> Iterator[Watched]:
    process = Watched("part", ["/bin/sleep", "60"], {}, tmp_path, stopped_limit_s=_LIMIT_S)
    process.start()
    yield process
    process.stop(0)


def eventually(watch: Callable[[], str | None], timeout_s: float = 10.0) -> str | None:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if end := watch():
            return end
        time.sleep(0.02)
    return None


def wait_for_restart(process: Watched) -> None:
    deadline = time.monotonic() + 10
    while process.pid is None:
        assert process.watch() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_process_that_exits_is_restarted(process: Watched) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGTERM)
    assert eventually(process.watch) == "signal SIGTERM"
    wait_for_restart(process)


@pytest.mark.slow
def test_a_process_that_stays_stopped_is_killed_and_restarted(process: Watched) -> None:
    before = process.pid
    assert before is not None
    os.kill(before, signal.SIGSTOP)
    began = time.monotonic()
    end = eventually(process.watch)
    assert time.monotonic() - began >= _LIMIT_S
    assert end is not None
    assert end.startswith("killed, since it had been stopped")
    wait_for_restart(process)
    assert process.pid != before


@pytest.mark.slow
def test_a_process_that_goes_on_in_time_is_left_alone(process: Watched) -> None:
    before = process.pid
    assert before is not None
    process.stopped_limit_s = 1.0
    for _ in range(4):  # longer in all than the limit
        os.kill(before, signal.SIGSTOP)
        assert eventually(process.watch, 0.3) is None
        os.kill(before, signal.SIGCONT)
        assert eventually(process.watch, 0.05) is None
    assert process.pid == before


def test_a_process_that_is_stopped_can_be_ended(process: Watched) -> None:
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    process.stop(grace_s=0.1)
    assert process.pid is None
