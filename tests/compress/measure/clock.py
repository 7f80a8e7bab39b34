"""A clock that only goes on when a model runs, so that races are decided and not guessed."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest

from compress.measure import latency, throughput, timing


class Clock:
    """Stands in for the module `time`."""

    def __init__(self) -> None:
        self.now_s = 0.0
        self.calls: list[str] = []

    def perf_counter(self) -> float:
        return self.now_s

    def model(self, name: str, takes_s: Callable[[], float]) -> Callable[[], object]:
        """What runs a model: it takes as long as it says."""

        def call() -> None:
            self.now_s += takes_s()
            self.calls.append(name)

        return call


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    stopped = Clock()
    for module in (latency, throughput, timing):
        monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=stopped.perf_counter))
    return stopped
