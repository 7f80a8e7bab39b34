"""Macro F1 from counts, streamed: the plain mean over classes of each one's F1.

As scikit-learn's `f1_score(average="macro")`. Labels are of one of three kinds:

- class ids, one an answer: the top class is the answer's; a class that neither labels nor answers
  hold does not count, one without a hit counts 0;
- 0 and 1 for each of several outputs (multi-label): the mean is over all outputs;
- 0 and 1 for models of one output (binary): the mean is over both classes.

For the latter two an output says yes above 0, as logits do, or above 0.5 where all answers of the
original lie between 0 and 1, as probabilities do.
"""

from __future__ import annotations

import torch
from torch import Tensor

_THRESHOLDS = (0.0, 0.5)


def is_indicator(label: Tensor, answer: Tensor) -> bool:
    """Whether labels say 0 or 1 for each output."""
    return label.numel() == answer.numel() and bool(((label == 0) | (label == 1)).all())


class F1Meter:
    """Hits, labels and answers of each class, for each way to tell yes from no."""

    def __init__(self) -> None:
        self._counts: dict[float, Tensor] = {}  # threshold: [hits, labels, answers] x classes
        self._probabilities = True
        self._columns = False

    def add_classes(self, label: Tensor, answer: Tensor, classes: int) -> None:
        """Take in class ids: what is and what the model says, both [n]."""
        self._add_classes(0.0, label, answer, classes)

    def add_indicators(self, label: Tensor, answer: Tensor, reference: Tensor) -> None:
        """Take in 0 or 1 for each output, the model's outputs, and the original's."""
        self._probabilities &= bool(((reference >= 0) & (reference <= 1)).all())
        truth, outputs = (_rows(each) for each in (label.reshape(answer.shape) == 1, answer))
        self._columns = outputs.shape[1] > 1
        for threshold in _THRESHOLDS:
            says = outputs > threshold
            if self._columns:
                self._add(threshold, [(truth & says).sum(0), truth.sum(0), says.sum(0)])
            else:
                self._add_classes(threshold, truth.flatten().long(), says.flatten().long(), 2)

    def _add_classes(self, threshold: float, label: Tensor, answer: Tensor, classes: int) -> None:
        hits = label[label == answer]
        self._add(
            threshold, [torch.bincount(ids, minlength=classes) for ids in (hits, label, answer)]
        )

    def _add(self, threshold: float, counts: list[Tensor]) -> None:
        self._counts[threshold] = self._counts.get(threshold, 0) + torch.stack(counts).double()

    @property
    def value(self) -> float:
        """Macro F1 of what was seen so far."""
        probabilities = self._probabilities and 0.5 in self._counts
        hits, labels, answers = self._counts[0.5 if probabilities else 0.0]
        each = 2 * hits / (labels + answers).clamp(min=1)
        return float((each if self._columns else each[labels + answers > 0]).mean())


def _rows(tensor: Tensor) -> Tensor:
    """Return [n, outputs] of [n], [n, outputs] or [n, outputs, …]."""
    if tensor.dim() < 2:
        return tensor.reshape(-1, 1)
    return tensor.movedim(1, -1).reshape(-1, tensor.shape[1])
