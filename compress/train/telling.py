"""What a run tells while it is under way: events, progress, speed and the time that is left."""

from __future__ import annotations

import time
from typing import Any

from compress.progress import Progress

EVERY_S = 2.0
"""Between two events inside an epoch."""
_PROGRESS_S = 0.5


class Teller:
    """Tells of one phase of a run."""

    def __init__(
        self, progress: Progress, span: tuple[float, float], steps: int, per_epoch: int
    ) -> None:
        """Begin.

        Args:
            progress: Of the job, in the stage `train`.
            span: Part of the stage that the phase takes.
            steps: In all.
            per_epoch: In an epoch.
        """
        self._progress = progress
        self._span = span
        self._steps, self._per_epoch = steps, per_epoch
        self._epochs = -(-steps // per_epoch)
        self._told_at = self._moved_at = time.monotonic()
        self._validation_s = 0.0
        self._first: tuple[int, float] | None = None
        self._last = (0, 0.0)

    def is_due(self) -> bool:
        """Whether it is time for an event."""
        return time.monotonic() - self._told_at >= EVERY_S

    def step(self, step: int, trained_s: float) -> None:
        """`step` steps are done, in so many seconds of training."""
        self._last = (step, trained_s)
        if self._first is None:  # the first step of a process takes longer than others
            self._first = self._last
        now = time.monotonic()
        if now - self._moved_at >= _PROGRESS_S:
            self._moved_at = now
            self._part(step, f"epoch {step // self._per_epoch + 1}/{self._epochs}")

    def validated(self, seconds: float) -> None:
        """An epoch took so long to be judged."""
        self._validation_s = seconds

    def tell(self, step: int, figures: dict[str, Any], *, is_epoch: bool) -> None:
        """Send an event.

        Args:
            step: Steps done.
            figures: A row of the curve.
            is_epoch: Whether an epoch is over; else the figures are of what is done of it.
        """
        self._told_at = time.monotonic()
        epoch = -(-step // self._per_epoch) if is_epoch else step // self._per_epoch + 1
        left = self._left_s(step)
        data = {
            **figures, "step": step, "steps": self._steps, "epoch": epoch, "epochs": self._epochs,
            "is_epoch": is_epoch, "eta_s": left,
        }  # fmt: skip
        told = [f"epoch {epoch}/{self._epochs}", f"loss {figures['loss']:.4g}"]
        if figures["accuracy"] is not None:
            told.append(f"accuracy {figures['accuracy']:.2%}")
        told.append(f"{figures['images_per_s']:.0f} images/s")
        if left is not None:
            told.append(f"{left:.0f} s left")
        message = ", ".join(told)
        self._progress.metrics(message, data)
        self._part(step, message)

    def _left_s(self, step: int) -> float | None:
        """Return the seconds that are left, going by this process's steps."""
        if self._first is None or self._last[0] == self._first[0]:
            return None
        step_s = (self._last[1] - self._first[1]) / (self._last[0] - self._first[0])
        epochs = self._epochs - step // self._per_epoch
        return (self._steps - step) * step_s + epochs * self._validation_s

    def _part(self, step: int, message: str) -> None:
        start, end = self._span
        self._progress.part(start + (end - start) * step / self._steps, message)
