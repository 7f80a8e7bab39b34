"""Which events are kept, so that neither a flood nor a long training fills a table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from app.db import utc_now

EVENTS_KEPT = 5000
EPOCHS_KEPT = 200_000
"""As many as a job can ask for, of training and of fine-tuning."""
_EPOCH_BYTES = 4096
_LEAST_GAP_S = 2.0
_GAP_SHARE = 0.01


@dataclass(frozen=True)
class Note:
    """One event of the engine."""

    type: str
    message: str
    data: Mapping[str, Any] | None = None
    level: str = "info"
    at: datetime = field(default_factory=utc_now)


Verdict = Literal["keep", "drop", "last"]


class Sieve:
    """Judges one event after the other.

    Figures at the end of an epoch are always kept. Of those in between, one every two seconds, and
    later one for each hundredth of the time that has passed: some hundred an hour at first, some
    hundred for every tenfold time after. Everything else is kept up to a number that only a model
    which floods us reaches.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._began = clock()
        self._last_figures_s: float | None = None
        self._kept = self._epochs = 0

    def judge(self, note: Note) -> Verdict:
        """Return whether to keep the event; `last` stands for all that are dropped from now on."""
        if _ends_epoch(note) and self._epochs < EPOCHS_KEPT:
            self._epochs += 1
            return "keep"
        if note.type == "metrics" and self._comes_too_soon():
            return "drop"
        self._kept += 1
        return (
            "keep" if self._kept < EVENTS_KEPT else "last" if self._kept == EVENTS_KEPT else "drop"
        )

    def _comes_too_soon(self) -> bool:
        now = self._clock()
        gap_s = max(_LEAST_GAP_S, _GAP_SHARE * (now - self._began))
        if self._last_figures_s is not None and now - self._last_figures_s < gap_s:
            return True
        self._last_figures_s = now
        return False


def _ends_epoch(note: Note) -> bool:
    data = note.data or {}
    return (
        note.type == "metrics"
        and data.get("is_epoch") is True
        and len(json.dumps(data)) <= _EPOCH_BYTES
    )
