"""Maps each stage's own progress to a fraction of the whole job."""

from __future__ import annotations

from compress.result import Sink
from compress.spec import Stage

# Where each stage starts, from the shares seen on ResNet-18 on two cores.
_STARTS: dict[bool, dict[Stage, float]] = {
    True: {
        "load": 0.0, "lift": 0.05, "calibrate": 0.12, "convert": 0.40, "export": 0.50,
        "evaluate": 0.60, "benchmark": 0.75,
    },
    False: {
        "load": 0.0, "lift": 0.05, "convert": 0.20, "export": 0.25, "evaluate": 0.40,
        "benchmark": 0.60,
    },
}  # fmt: skip


class Progress:
    """Tells a sink of stages and of the whole job's fraction, which never goes back."""

    def __init__(self, sink: Sink, *, calibrates: bool) -> None:
        self._sink = sink
        self._starts = _STARTS[calibrates]
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

    def done(self) -> None:
        """The job is over."""
        self._sink.progress(1.0, "done")
