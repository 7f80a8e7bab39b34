"""Losses and speed of a run, summed where the model is, so that no step waits for them."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

TOTAL = "loss"


class Figures:
    """Sums of the epoch under way, and time.

    Attributes:
        total_s: Seconds of training, by all processes.
        samples: Trained on in them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._sums: dict[str, Tensor] = {}
        self._epoch_samples = 0
        self._epoch_s = 0.0
        self._running_since: float | None = None
        self._first_bad = torch.full((), -1, dtype=torch.int64, device=device)
        self.total_s = 0.0
        self.samples = 0

    def add(self, step: int, losses: dict[str, Tensor], samples: int) -> None:
        """Take a step in: its loss as TOTAL, and the parts of it."""
        for name, loss in losses.items():
            weighted = loss.double() * samples
            self._sums[name] = self._sums[name] + weighted if name in self._sums else weighted
        bad = (self._first_bad < 0) & ~torch.isfinite(losses[TOTAL])
        self._first_bad = torch.where(bad, step, self._first_bad)
        self._epoch_samples += samples
        self.samples += samples

    def first_bad(self) -> int | None:
        """Return the first step whose loss was no number, or None; waits for the device."""
        step = int(self._first_bad)
        return step if step >= 0 else None

    def run(self) -> None:
        """Let the clock run."""
        self._running_since = time.monotonic()

    def pause(self) -> None:
        """Stop the clock, once the device has done what it was told."""
        if self._running_since is None:
            return
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        passed_s = time.monotonic() - self._running_since
        self._epoch_s += passed_s
        self.total_s += passed_s
        self._running_since = None

    def clock_s(self) -> float:
        """Return the seconds of training up to now."""
        since = self._running_since
        return self.total_s + (0.0 if since is None else time.monotonic() - since)

    def epoch(self) -> dict[str, Any]:
        """Return `loss`, `parts` and `images_per_s` of the epoch so far; waits for the device."""
        means = {name: float(total) / self._epoch_samples for name, total in self._sums.items()}
        since = self._running_since
        passed_s = self._epoch_s + (0.0 if since is None else time.monotonic() - since)
        return {
            "loss": means.pop(TOTAL),
            "parts": means,
            "images_per_s": self._epoch_samples / max(passed_s, 1e-9),
        }

    def begin_epoch(self) -> None:
        """Forget the epoch's sums."""
        self._sums = {}
        self._epoch_samples, self._epoch_s = 0, 0.0

    @property
    def images_per_s(self) -> float:
        """Samples per second of training."""
        return self.samples / max(self.total_s, 1e-9)

    def state(self) -> dict[str, Any]:
        """Return all that is to be kept, with the clock as it stands."""
        return {
            "sums": {name: float(total) for name, total in self._sums.items()},
            "epoch_samples": self._epoch_samples,
            "epoch_s": self._epoch_s + self.clock_s() - self.total_s,
            "total_s": self.clock_s(),
            "samples": self.samples,
        }

    def load(self, state: dict[str, Any]) -> None:
        """Go on from a state."""
        self._sums = {
            name: torch.tensor(total, dtype=torch.float64, device=self._device)
            for name, total in state["sums"].items()
        }
        self._epoch_samples, self._epoch_s = state["epoch_samples"], state["epoch_s"]
        self.total_s, self.samples = state["total_s"], state["samples"]
