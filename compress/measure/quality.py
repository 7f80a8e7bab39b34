"""Quality of a model's answers over an evaluation set, streamed batch by batch.

Class ids go with answers of `[samples, classes]`, `[samples, classes, …]` as in segmentation, or
`[samples, …, classes]` as for tokens; the labels' shape tells which.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from compress.errors import BadEvaluationData, BadOutput, InvalidSpec, LabelMismatch
from compress.measure.f1 import F1Meter, is_indicator
from compress.measure.outputs import class_axis, primary_output
from compress.result import Quality
from compress.spec import Metric

IGNORED = -100
"""The class id of what has no label: padding, say. As in torch's cross_entropy."""
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
            return "agreement" if class_axis(answer) is not None else None
        metric = "mse" if label.is_floating_point() else "top1"
    if metric == "agreement":
        if class_axis(answer) is None:
            raise InvalidSpec("Metric 'agreement' needs outputs of two or more classes.")
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
    if metric == "f1" and is_indicator(label, answer):
        return
    axis = class_axis(answer, label)
    if axis is None:
        raise LabelMismatch(f"Outputs of shape {list(answer.shape)} have no classes.")
    if label.is_floating_point():
        raise LabelMismatch(
            f"Metric '{metric}' needs integer class ids, and labels are floats"
            + (" other than 0 and 1 for each output." if metric == "f1" else ".")
        )
    classes = answer.shape[axis]
    spots = answer.numel() // classes
    if label.numel() != spots:
        raise LabelMismatch(
            f"Labels of shape {list(label.shape)} do not fit outputs of shape "
            f"{list(answer.shape)}; there must be one class id for each of {spots} answers."
        )
    labelled = label[label != IGNORED]
    if labelled.numel():
        check_range(metric, int(labelled.min()), int(labelled.max()), label, answer)


def check_range(metric: Metric, low: int, high: int, label: Tensor, answer: Tensor) -> None:
    """Raise LabelMismatch where class ids from `low` to `high` are not all classes of the model.

    Args:
        metric: What the labels are for; 0 and 1 for each output have no classes to be out of.
        low: The least of all labels.
        high: The greatest.
        label: Labels of one batch, whose shape tells where the classes are.
        answer: The original's answer for it.
    """
    if metric == "f1" and is_indicator(label, answer):
        return
    classes = answer.shape[class_axis(answer, label) or 0]
    if low < 0 or high >= classes:
        raise LabelMismatch(
            f"Labels run from {low} to {high}, but the model has classes 0 to {classes - 1}."
        )


class QualityMeter:
    """One metric of one model.

    Answers whose class id is IGNORED do not count. Top-1 and top-5 are hits per answer, mse and mae
    means over all output numbers, agreement the share of answers whose top class is the original's,
    f1 the mean over classes of each one's F1.
    """

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self._total = 0.0
        self._count = 0
        self._samples = 0
        self._f1 = F1Meter()

    def add(self, output: Any, label: Tensor | None, reference: Any) -> None:
        """Take in one batch; `reference` is the original's output for it."""
        answer = primary_output(output)
        self._samples += answer.shape[0]
        if self.metric == "agreement":
            axis = class_axis(answer) or 0
            hits = answer.argmax(axis) == primary_output(reference).argmax(axis)
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
        if self.metric == "f1" and is_indicator(label, answer):
            self._f1.add_indicators(label, answer, primary_output(reference))
            self._count += label.numel()
            return
        axis = class_axis(answer, label) or 0
        classes = answer.movedim(axis, -1).reshape(-1, answer.shape[axis])
        ids = label.reshape(-1)
        classes, ids = classes[ids != IGNORED], ids[ids != IGNORED]
        self._count += len(ids)
        if self.metric == "f1":
            self._f1.add_classes(ids, rank_classes(classes, 1)[:, 0], classes.shape[1])
            return
        hits = rank_classes(classes, 5 if self.metric == "top5" else 1) == ids[:, None]
        self._total += float(hits.any(1).sum())

    def report(self, baseline: Quality | None = None) -> Quality:
        """Return the metric; with a baseline, also `drop`: positive means worse than it.

        Raises:
            BadEvaluationData: The original's error is no finite number, so nothing compares.
            BadOutput: The artifact's is not, though the original's is.
        """
        if not self._count:
            raise BadEvaluationData(
                f"Every label is {IGNORED}, so there is nothing to measure {self.metric} on. Give "
                "labels, or use `agreement`."
            )
        value = self._f1.value if self.metric == "f1" else self._total / self._count
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
