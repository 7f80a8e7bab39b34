"""How a training that is under way looks: a line of figures and a sparkline of the loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from tersor.views import Event

_BARS = "▁▂▃▄▅▆▇█"
_WIDTH = 24


class TrainingLine:
    """The figures of a training so far, as one line."""

    def __init__(self) -> None:
        self._losses: list[float] = []
        self._phase: object = None
        self.text = ""

    def take(self, event: Event) -> bool:
        """Take the event in if it holds figures of a training; return whether it did."""
        data = event.data or {}
        if event.type != "metrics" or not _is_number(data.get("loss")):
            return False
        if data.get("phase") != self._phase:  # another loss: its curve begins anew
            self._phase = data.get("phase")
            self._losses.clear()
        self._losses.append(float(data["loss"]))
        self.text = _describe(data, sparkline(self._losses))
        return True


def is_between_epochs(event: Event) -> bool:
    """Whether an event tells figures from within an epoch, of which there are many."""
    return event.type == "metrics" and (event.data or {}).get("is_epoch") is False


def sparkline(values: Sequence[float], width: int = _WIDTH) -> str:
    """Return the values as bars, the newest last; of more than `width`, means of neighbours."""
    count = min(width, len(values))
    edges = [index * len(values) // max(1, count) for index in range(count + 1)]
    means = [sum(values[start:end]) / (end - start) for start, end in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scale = (len(_BARS) - 1) / (high - low) if high > low else 0.0
    return "".join(_BARS[round((mean - low) * scale)] for mean in means)


def _describe(data: Mapping[str, Any], curve: str) -> str:
    told = [f"epoch {data.get('epoch', '?')}/{data.get('epochs', '?')}"]
    told.append(f"loss {data['loss']:.4g} {curve}")
    if _is_number(accuracy := data.get("accuracy")):
        told.append(f"accuracy {accuracy:.2%}")
    if _is_number(rate := data.get("images_per_s")):
        told.append(f"{rate:.0f} images/s")
    if _is_number(left_s := data.get("eta_s")):
        told.append(f"{left_s:.0f} s left")
    return "  ".join(told)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
