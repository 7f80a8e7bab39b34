"""Which samples a model learns from, in what order, and which it is judged by."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from compress.data import Dataset
from compress.errors import BadTrainingData, InvalidSpec, LabelMismatch
from compress.measure.outputs import class_axis
from compress.measure.quality import IGNORED, check_labels
from compress.spec.training import held_out
from compress.train.objective import Batch
from compress.train.rows import RowReader
from compress.train.teacher import Teacher

_SCAN_BYTES = 1 << 23
_SPLIT, _ORDER = 1, 2
"""Tell apart what is drawn from the same seed."""


@dataclass(frozen=True)
class TrainingData:
    """Samples of a dataset, parted.

    Attributes:
        dataset: Bound to the trained model's arguments.
        training: Indices of the samples to learn from, sorted.
        validation: Those that epochs are judged by, sorted; may be empty.
        seed: Decides on the order.
        teacher: Gives answers, where the loss needs them.
    """

    dataset: Dataset
    training: np.ndarray
    validation: np.ndarray
    seed: int
    teacher: Teacher | None = None

    @classmethod
    def split(cls, dataset: Dataset, fraction: float, seed: int) -> TrainingData:
        """Keep a share of the samples back, chosen at random.

        Args:
            dataset: All samples.
            fraction: To be kept back; at least one sample, if not 0.
            seed: Decides which.

        Raises:
            BadTrainingData: Fewer than two samples would be left.
        """
        order = np.random.default_rng((seed, _SPLIT)).permutation(dataset.samples)
        kept = held_out(dataset.samples, fraction)
        if dataset.samples - kept < 2:
            raise BadTrainingData(
                f"The training dataset holds {dataset.samples} samples, of which "
                f"{max(0, dataset.samples - kept)} are left to learn from; give some hundred."
            )
        return cls(dataset, np.sort(order[kept:]), np.sort(order[:kept]), seed)

    def taught_by(self, teacher: Teacher | None) -> TrainingData:
        """Return the same samples with another teacher, or none."""
        return replace(self, teacher=teacher)

    @property
    def has_labels(self) -> bool:
        """Whether there are labels at all."""
        return self.dataset.label is not None

    @property
    def has_classes(self) -> bool:
        """Whether the labels are class ids."""
        return self.dataset.label is not None and self.dataset.label.dtype.kind != "f"

    def check(self, answer: Tensor) -> None:
        """Look at every sample and label once.

        Args:
            answer: The trained model's, for the first samples of the dataset; it tells classes.

        Raises:
            BadTrainingData: NaN in an array, or an infinite target.
            LabelMismatch: Labels that do not fit the answers, or class ids out of range.
        """
        for name, array in zip(self.dataset.names, self.dataset.inputs, strict=True):
            for start, part in _scan(array):
                _check_numbers(name, start, np.isnan(part))
        self.check_labels(answer)

    def check_labels(self, answer: Tensor) -> None:
        """Look at every label once; see `check`."""
        label = self.dataset.label
        if label is None:
            return
        answer = answer[: len(label)]  # to more samples than there are, some stand in twice
        self._check_classes(label, answer) if self.has_classes else _check_targets(label, answer)

    def _check_classes(self, label: np.ndarray, answer: Tensor) -> None:
        few = torch.from_numpy(label[: len(answer)].astype(np.int64))
        if class_axis(answer, few) is None:
            raise LabelMismatch(
                f"Labels of element type {label.dtype} are taken for class ids, and outputs of "
                f"shape {list(answer.shape)} have no classes. If they are targets, store them as "
                "floats."
            )
        check_labels("top1", few.clamp(0, 0), answer)
        classes = answer.shape[class_axis(answer, few) or 0]
        for start, part in _scan(label, every=True):
            wrong = ((part < 0) & (part != IGNORED)) | (part >= classes)
            if wrong.any():
                row = int(wrong.reshape(len(part), -1).any(1).argmax())
                found = np.asarray(part[row])[np.asarray(wrong[row])].ravel()[0]
                raise LabelMismatch(
                    f"Label {found} of training sample {start + row} is none of the model's "
                    f"classes 0 to {classes - 1}; {IGNORED} marks what has no label."
                )

    def check_batch_size(self, batch_size: int) -> None:
        """Raise InvalidSpec where a batch is larger than the data."""
        if batch_size > len(self.training):
            kept = f", {len(self.validation)} more are kept back by validation_fraction"
            raise InvalidSpec(
                f"batch_size {batch_size} is larger than the data: there are {len(self.training)} "
                f"samples to learn from{kept if len(self.validation) else ''}. Use a smaller one."
            )

    def batches_per_epoch(self, batch_size: int) -> int:
        """Return the steps of an epoch; a last batch of a single sample goes with the one before.

        BatchNorm cannot learn from one.
        """
        full, rest = divmod(len(self.training), batch_size)
        return full + (1 if rest > 1 or (rest == 1 and batch_size == 1) else 0)

    def order(self, first: int, last: int, batch_size: int) -> Iterator[np.ndarray]:
        """Yield the samples' indices of steps `[first, last)`, shuffled anew for each epoch."""
        per_epoch = self.batches_per_epoch(batch_size)
        shuffled, shuffled_epoch = self.training, -1
        for step in range(first, last):
            epoch, index = divmod(step, per_epoch)
            if epoch != shuffled_epoch:
                generator = np.random.default_rng((self.seed, _ORDER, epoch))
                shuffled, shuffled_epoch = generator.permutation(self.training), epoch
            start = index * batch_size
            stop = len(shuffled) if index == per_epoch - 1 else start + batch_size
            # nothing hangs on the order in a batch, and a disk reads in order faster
            yield np.sort(shuffled[start:stop])

    def facts(self) -> tuple[Any, ...]:
        """Return what tells these samples from others, without reading all of them."""
        label = self.dataset.label
        arrays = [*self.dataset.inputs, *([] if label is None else [label])]
        digest = hashlib.sha256()
        for array in arrays:
            digest.update(np.ascontiguousarray(array[0]).tobytes())
            digest.update(np.ascontiguousarray(array[-1]).tobytes())
        shapes = [(array.shape, array.dtype.str) for array in arrays]
        return shapes, digest.hexdigest(), len(self.training), len(self.validation), self.seed

    def reader(self) -> DataReader:
        """Return what brings samples up; for as many threads as you like."""
        return DataReader(self)


class DataReader:
    """Reads batches of a TrainingData; keeps little of what it read in memory."""

    def __init__(self, data: TrainingData) -> None:
        dataset = data.dataset
        self._dataset = dataset
        self._arrays = RowReader({
            name: array
            for name, array in zip(dataset.names, dataset.inputs, strict=True)
            if name not in dataset.numbers
        } | ({} if dataset.label is None else {"label": dataset.label}))  # fmt: skip
        self._teacher = data.teacher

    def read(self, indices: np.ndarray, *, with_answers: bool) -> Batch:
        """Return samples, and what the teacher remembers of them.

        Args:
            indices: Of samples; sorted.
            with_answers: Whether to bring remembered answers up, too.
        """
        found: dict[str, Any] = dict(self._arrays.read(indices))
        label = found.pop("label", None)
        values = found | dict(self._dataset.numbers)
        layout = self._dataset.layout
        inputs = (
            [values[name] for name in self._dataset.names]
            if layout is None
            else layout.fill(lambda slot: values[slot.name])
        )
        if label is not None and not label.is_floating_point():
            label = label.long()
        taught = self._teacher if with_answers else None
        return Batch(inputs, label, None if taught is None else taught.recall(indices))


def _scan(array: np.ndarray, *, every: bool = False) -> Iterator[tuple[int, np.ndarray]]:
    """Yield pieces of a float array, or of any, with the index of their first sample."""
    if array.dtype.kind not in "fc" and not every:
        return
    reader = RowReader({"": array})
    step = max(1, _SCAN_BYTES * len(array) // max(array.nbytes, 1))
    for start in range(0, len(array), step):
        yield start, reader.slice("", start, start + step)


def _check_targets(label: np.ndarray, answer: Tensor) -> None:
    few = torch.from_numpy(label[: len(answer)].astype(np.float32))
    if few.numel() != answer.numel() and class_axis(answer, few) is not None:
        raise LabelMismatch(
            f"Labels of element type {label.dtype} are taken for targets, and those of shape "
            f"{list(few.shape)} do not fit outputs of shape {list(answer.shape)}. If they are "
            "class ids, store them as integers."
        )
    check_labels("mse", few, answer)
    for start, part in _scan(label):
        _check_numbers("label", start, ~np.isfinite(part))


def _check_numbers(name: str, start: int, bad: np.ndarray) -> None:
    if bad.any():
        row = int(bad.reshape(len(bad), -1).any(1).argmax())
        raise BadTrainingData(
            f"Array '{name}', sample {start + row}, holds NaN"
            f"{' or infinite values' if name == 'label' else ''}, which nothing can be learned "
            "from. Clean or drop that sample."
        )
