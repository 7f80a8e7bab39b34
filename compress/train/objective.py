"""What training makes small: a loss of answers, labels and the teacher's answers, by its parts."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.measure.outputs import primary_output
from compress.measure.quality import IGNORED
from compress.structure import batch_length, map_tensors
from compress.train.losses import (
    class_rows,
    correlation_distance,
    label_loss,
    log_odds,
    soft_divergence,
    squared_distance,
)

AnswerLoss = Literal["kl_ce", "kl", "mse", "dist"]


@dataclass(frozen=True)
class Answers:
    """What a teacher says of a batch.

    Attributes:
        output: Its first floating-point output `[samples, …]`, in float32.
        features: Layer name to the output of that layer.
    """

    output: Tensor
    features: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Batch:
    """Samples of one step, or of one part of it.

    Attributes:
        inputs: Forward's arguments.
        label: Class ids as int64 or targets as float32, `[samples, …]`, or None.
        answers: The teacher's, or None.
        share: Samples here as a fraction of the step's.
        label_share: Labels here, without those to be ignored, as a fraction of the step's.
        other_label: Where two samples were mixed, the second one's labels.
        mixed: Weight of the first one.
    """

    inputs: list[Any]
    label: Tensor | None = None
    answers: Answers | None = None
    share: float = 1.0
    label_share: float | Tensor = 1.0
    other_label: Tensor | None = None
    mixed: float = 1.0

    def __len__(self) -> int:
        """Return the number of samples."""
        return batch_length(self.inputs)

    def parts(self, count: int) -> list[Batch]:
        """Split into at most `count` batches of nearly equal size, none of a single sample.

        BatchNorm cannot learn from one.
        """
        samples = len(self)
        count = max(1, min(count, samples // 2))
        bounds = [samples * index // count for index in range(count + 1)]
        return [self] if count == 1 else [
            self._part(start, stop) for start, stop in itertools.pairwise(bounds)
        ]  # fmt: skip

    def _part(self, start: int, stop: int) -> Batch:
        def cut(value: Any) -> Any:
            return map_tensors(value, lambda tensor: tensor[start:stop])

        share = (stop - start) / len(self)
        answers = self.answers and Answers(cut(self.answers.output), cut(self.answers.features))
        return Batch(
            inputs=cut(self.inputs),
            label=cut(self.label),
            answers=answers,
            share=share,
            label_share=self._label_share(start, stop, share),
            other_label=cut(self.other_label),
            mixed=self.mixed,
        )

    def _label_share(self, start: int, stop: int, share: float) -> float | Tensor:
        if self.label is None or self.label.is_floating_point():
            return share
        counted = self.label != IGNORED
        return counted[start:stop].sum() / counted.sum().clamp_min(1)


@dataclass(frozen=True)
class Loss:
    """A batch's contribution to the step's mean loss.

    Attributes:
        total: What is made small; a scalar in float32.
        parts: Name to what it is made up of, weighted and detached; they add up to the total.
    """

    total: Tensor
    parts: dict[str, Tensor]

    @classmethod
    def of(cls, parts: dict[str, Tensor]) -> Loss:
        """Return the sum of parts."""
        return cls(
            torch.stack(list(parts.values())).sum(),
            {name: part.detach() for name, part in parts.items()},
        )


class Objective(nn.Module):
    """A loss; parameters that it has are trained with the model, and kept in checkpoints.

    Attributes:
        needs_teacher: Whether batches must bring the teacher's answers.
        needs_labels: Whether they must bring labels.
    """

    needs_teacher = False
    needs_labels = False

    def forward(self, output: Any, batch: Batch) -> Loss:
        """Return the contribution of a batch that was answered with `output`.

        Contributions of a step's parts add up to its loss: means over samples are to be multiplied
        by `batch.share`, means over labels by `batch.label_share`.
        """
        raise NotImplementedError


class AnswerObjective(Objective):
    """Answers compared with the teacher's and with the labels.

    `alpha * loss(teacher, student) + (1 - alpha) * loss(labels, student)`; without labels, the
    first alone. Labels that are class ids give cross-entropy, float targets squared distance.
    """

    def __init__(
        self,
        loss: AnswerLoss,
        *,
        temperature: float,
        alpha: float,
        has_labels: bool,
        student_probabilities: bool = False,
        teacher_probabilities: bool = False,
    ) -> None:
        """Take the settings.

        Args:
            loss: What the answers are compared by.
            temperature: Softens both answers.
            alpha: Weight of the teacher; of no meaning for `kl`, nor without labels.
            has_labels: Whether batches bring labels.
            student_probabilities: Whether the student answers with probabilities, not logits.
            teacher_probabilities: Whether the teacher does.
        """
        super().__init__()
        self._loss = loss
        self._temperature = temperature
        self._alpha = alpha if has_labels and loss != "kl" else 1.0
        self._ours, self._theirs = student_probabilities, teacher_probabilities
        self.needs_teacher = self._alpha > 0
        self.needs_labels = self._alpha < 1

    def forward(self, output: Any, batch: Batch) -> Loss:
        """Return the loss with its parts `teacher` and `labels`."""
        answer = primary_output(output)
        parts = {}
        if self._alpha > 0:
            assert batch.answers is not None
            soft = self._from_teacher(answer, batch.answers.output, batch.label)
            parts["teacher"] = self._alpha * batch.share * soft
        if self._alpha < 1:
            parts["labels"] = (
                (1 - self._alpha) * batch.label_share * self._from_labels(answer, batch)
            )
        return Loss.of(parts)

    def _from_teacher(self, answer: Tensor, taught: Tensor, label: Tensor | None) -> Tensor:
        if self._loss == "mse":
            return squared_distance(answer, taught)
        kind = None if label is not None and label.is_floating_point() else label
        compare = correlation_distance if self._loss == "dist" else soft_divergence
        return compare(
            log_odds(class_rows(answer, kind), are_probabilities=self._ours),
            log_odds(class_rows(taught, kind), are_probabilities=self._theirs),
            self._temperature,
        )

    def _from_labels(self, answer: Tensor, batch: Batch) -> Tensor:
        assert batch.label is not None
        hard = label_loss(answer, batch.label, are_probabilities=self._ours)
        if batch.other_label is None:
            return hard
        other = label_loss(answer, batch.other_label, are_probabilities=self._ours)
        return batch.mixed * hard + (1 - batch.mixed) * other


def labels_alone(*, student_probabilities: bool = False) -> AnswerObjective:
    """Return the loss of the labels, without a teacher."""
    return AnswerObjective(
        "kl_ce",
        temperature=1.0,
        alpha=0.0,
        has_labels=True,
        student_probabilities=student_probabilities,
    )
