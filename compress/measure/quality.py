"""Quality of a model's answers over an evaluation set, streamed batch by batch."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from compress.errors import BadEvaluationData, BadOutput, InvalidSpec, LabelMismatch
from compress.measure.fidelity import has_classes
from compress.measure.outputs import primary_output
from compress.result import Quality
from compress.spec import Metric

_LOWER_IS_BETTER = ("mse", "mae")


def pick_metric(asked: Metric | None, label: Tensor | None, output: Any) -> Metric | None:
    """Return the metric to use: the one asked for, else by the labels.

    Args:
        asked: The request's metric, if any.
        label: Labels of one batch, if the dataset has any.
        output: The original's output for that batch.

    Returns:
        `top1` for class ids, `mse` for float targets, `agreement` without labels, and None where
        without labels there are no classes to agree on.

    Raises:
        InvalidSpec: The metric asked for cannot be computed from what there is.
        LabelMismatch: Labels do not fit the output.
    """
    answer = primary_output(output)
    metric: Metric | None = asked
    if metric is None:
        if label is None:
            return "agreement" if has_classes(answer) else None
        metric = "mse" if label.is_floating_point() else "top1"
    if metric == "agreement":
        if not has_classes(answer):
            raise InvalidSpec("Metric 'agreement' needs outputs of two or more classes on axis 1.")
        return metric
    if label is None:
        raise InvalidSpec(
            f"Metric '{metric}' needs labels; add an array 'label' to the evaluation dataset."
        )
    check_labels(metric, label, answer)
    return metric


def check_labels(metric: Metric, label: Tensor, answer: Tensor) -> None:
    """Raise LabelMismatch where `label` cannot be compared with `answer` under `metric`."""
    if metric in _LOWER_IS_BETTER:
        if label.numel() != answer.numel():
            raise LabelMismatch(
                f"Targets of shape {list(label.shape)} do not fit outputs of shape "
                f"{list(answer.shape)}."
            )
        return
    if not has_classes(answer):
        raise LabelMismatch(f"Outputs of shape {list(answer.shape)} have no classes on axis 1.")
    if label.is_floating_point():
        raise LabelMismatch(f"Metric '{metric}' needs integer class ids, and labels are floats.")
    classes = answer.shape[1]
    spots = answer.numel() // classes
    if label.numel() != spots:
        raise LabelMismatch(
            f"Labels of shape {list(label.shape)} do not fit outputs of shape "
            f"{list(answer.shape)}; there must be one class id for each of {spots} answers."
        )
    low, high = int(label.min()), int(label.max())
    if low < 0 or high >= classes:
        raise LabelMismatch(
            f"Labels run from {low} to {high}, but the model has classes 0 to {classes - 1}."
        )


class QualityMeter:
    """One metric of one model.

    Top-1 and top-5 are hits per answer, mse and mae means over all output numbers, agreement the
    share of answers whose top class is the original's.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._total = 0.0
        self._count = 0
        self._samples = 0

    def add(self, output: Any, label: Tensor | None, reference: Any) -> None:
        """Take in one batch; `reference` is the original's output for it."""
        answer = primary_output(output)
        self._samples += answer.shape[0]
        if self.metric == "agreement":
            hits = answer.argmax(1) == primary_output(reference).argmax(1)
            self._total += float(hits.sum())
            self._count += hits.numel()
            return
        if label is None:
            raise BadOutput(f"Metric '{self.metric}' needs labels.")
        check_labels(self.metric, label, answer)
        if self.metric in _LOWER_IS_BETTER:
            difference = answer.double().flatten() - label.double().flatten()
            error = difference.abs() if self.metric == "mae" else difference.square()
            self._total += float(error.sum())
            self._count += error.numel()
            return
        classes = answer.movedim(1, -1).reshape(-1, answer.shape[1])
        hits = rank_classes(classes, 5 if self.metric == "top5" else 1) == label.reshape(-1, 1)
        self._total += float(hits.any(1).sum())
        self._count += hits.shape[0]

    def report(self, baseline: Quality | None = None) -> Quality:
        """Return the metric; with a baseline, also `drop`: positive means worse than it.

        Raises:
            BadEvaluationData: The original's error is no finite number, so nothing compares.
            BadOutput: The artifact's is not, though the original's is.
        """
        value = self._total / self._count
        if not math.isfinite(value):
            if baseline is None:
                raise BadEvaluationData(
                    f"On the evaluation data the model's {self.metric} is {value}: its answers or "
                    "the targets hold NaN or are too large. Clean the data, or use `agreement`."
                )
            raise BadOutput(
                f"The compressed model's {self.metric} is {value}: its answers leave the range of "
                "its numbers. Use another precision, or keep its largest layers in fp32."
            )
        drop = None
        if baseline is not None:
            sign = -1.0 if self.metric in _LOWER_IS_BETTER else 1.0
            drop = sign * (baseline.value - value)
        return Quality(metric=self.metric, value=value, samples=self._samples, drop=drop)


def rank_classes(answers: Tensor, best: int) -> Tensor:
    """Return the `best` classes of `answers` [n, classes], the first of equal ones before others.

    int8 answers are often equal. `argmax` takes the first, and everyone checks a top-1 with
    `argmax`; `topk` takes any.
    """
    return answers.sort(dim=1, descending=True, stable=True).indices[:, :best]


def within_budget(quality: Quality, baseline: Quality, max_drop: float) -> bool:
    """Whether the drop stays within `max_drop`.

    For mse and mae, which have units, the drop counts as a fraction of the baseline's error.
    """
    drop = quality.drop or 0.0
    if quality.metric in _LOWER_IS_BETTER:
        return drop <= max_drop * baseline.value
    return drop <= max_drop + 1e-12
