"""Maps each stage's own progress to a fraction of the whole job."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from compress.result import Sink
from compress.spec import Stage

Kind = Literal["calibrates", "converts", "trains"]

# Where each stage starts, from the shares seen on ResNet-18 on two cores.
_STARTS: dict[Kind, dict[Stage, float]] = {
    "calibrates": {
        "load": 0.0, "lift": 0.05, "calibrate": 0.12, "convert": 0.40, "export": 0.50,
        "evaluate": 0.60, "benchmark": 0.75,
    },
    "converts": {
        "load": 0.0, "lift": 0.05, "convert": 0.20, "export": 0.25, "evaluate": 0.40,
        "benchmark": 0.60,
    },
    "trains": {
        "load": 0.0, "lift": 0.01, "calibrate": 0.03, "train": 0.05, "convert": 0.85,
        "export": 0.86, "evaluate": 0.90, "benchmark": 0.94,
    },
}  # fmt: skip


class Progress:
    """Tells a sink of stages and of the whole job's fraction, which never goes back."""

    def __init__(self, sink: Sink, kind: Kind) -> None:
        """Begin a job.

        Args:
            sink: Is told.
            kind: What the job spends its time on.
        """
        self._sink = sink
        self._starts = _STARTS[kind]
        self._span = (0.0, 0.0)

    def stage(self, stage: Stage, message: str) -> None:
        """Begin a stage."""
        start = self._starts[stage]
        later = [other for other in self._starts.values() if other > start]
        self._span = (start, min(later, default=1.0))
        self._sink.stage(stage, message)
        self._sink.progress(start, message)

    def part(self, fraction: float, message: str) -> None:
        """`fraction` of the current stage is done."""
        start, end = self._span
        self._sink.progress(start + min(1.0, fraction) * (end - start), message)

    def metrics(self, message: str, data: Mapping[str, Any]) -> None:
        """Figures of a training that is under way."""
        self._sink.event("metrics", message, data)

    def note(self, message: str) -> None:
        """Tell of something worth keeping."""
        self._sink.event("log", message)

    def warn(self, message: str) -> None:
        """Tell of something that the user should know, and that ends nothing."""
        self._sink.event("log", message, level="warning")

    def done(self) -> None:
        """The job is over."""
        self._sink.progress(1.0, "done")
