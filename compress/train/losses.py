"""What answers are compared by. Each is a mean over rows, computed in float32.

A row is one decision: `[rows, classes]`, or whatever a regression answers for one sample.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from compress.measure.outputs import class_axis
from compress.measure.quality import IGNORED

_LEAST = 1e-12
"""Keeps logarithms and quotients finite."""


def class_rows(answer: Tensor, label: Tensor | None = None) -> Tensor:
    """Return `answer` as `[rows, classes]`; where its classes lie, the labels tell if any.

    Raises:
        ValueError: There are no classes.
    """
    axis = class_axis(answer, label)
    if axis is None:
        raise ValueError(f"answers of shape {list(answer.shape)} have no classes")
    return answer.movedim(axis, -1).reshape(-1, answer.shape[axis])


def log_odds(rows: Tensor, *, are_probabilities: bool) -> Tensor:
    """Return what a softmax makes the rows' probabilities of; models may end in one or not."""
    return rows.clamp_min(_LEAST).log() if are_probabilities else rows


def soft_divergence(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return the divergence of softened classes, `T^2 KL(teacher/T || student/T)`.

    The factor keeps the gradients as large as those of hard labels, whatever T is.

    Source: Hinton et al., Distilling the Knowledge in a Neural Network, 2015.

    Args:
        student: Logits `[rows, classes]`.
        teacher: Logits of the same shape.
        temperature: T.
    """
    divergence = F.kl_div(
        F.log_softmax(student / temperature, 1),
        F.log_softmax(teacher / temperature, 1),
        reduction="sum",
        log_target=True,
    )
    return divergence * temperature**2 / student.shape[0]


def correlation_distance(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Return how far classes are from being correlated: within each row, and over the rows.

    Source: Huang et al., Knowledge Distillation from A Stronger Teacher (DIST), 2022; beta and
    gamma are 1.

    Args:
        student: Logits `[rows, classes]`.
        teacher: Logits of the same shape.
        temperature: tau.
    """
    ours, theirs = (student / temperature).softmax(1), (teacher / temperature).softmax(1)
    between = 1 - _pearson(ours, theirs).mean()
    within = 1 - _pearson(ours.T, theirs.T).mean()
    return temperature**2 * (between + within)


def _pearson(left: Tensor, right: Tensor) -> Tensor:
    """Correlation of each row of both."""
    return F.cosine_similarity(
        left - left.mean(1, keepdim=True), right - right.mean(1, keepdim=True), dim=1, eps=1e-8
    )


def squared_distance(student: Tensor, teacher: Tensor) -> Tensor:
    """Return the mean squared difference of all numbers."""
    return F.mse_loss(student, teacher)


def label_loss(answer: Tensor, label: Tensor, *, are_probabilities: bool = False) -> Tensor:
    """Return cross-entropy with class ids, or squared distance from float targets.

    Args:
        answer: Float32 `[samples, …]`.
        label: Class ids as int64, of which IGNORED count nothing, or float32 targets.
        are_probabilities: Whether the answers are no logits.
    """
    if label.is_floating_point():
        return squared_distance(answer, label.reshape(answer.shape))
    rows = log_odds(class_rows(answer, label), are_probabilities=are_probabilities)
    ids = label.reshape(-1)
    total = F.cross_entropy(rows, ids, ignore_index=IGNORED, reduction="sum")
    return total / (ids != IGNORED).sum().clamp_min(1)


def look_like_probabilities(answer: Tensor) -> bool:
    """Whether each row of classes is between 0 and 1 and adds up to 1: a softmax was the end."""
    axis = class_axis(answer)
    if axis is None:
        return False
    sums = answer.sum(axis)
    return bool((answer >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3)
