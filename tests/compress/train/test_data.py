"""Which samples are learned from, in what order; and faults of the data, found before training."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import torch

from compress.errors import BadTrainingData, InvalidSpec, LabelMismatch
from compress.train.data import TrainingData
from tests.compress.train import runs


def test_the_split_hangs_on_the_seed_alone() -> None:
    data = runs.rows(100)
    one, again = TrainingData.split(data, 0.2, 5), TrainingData.split(data, 0.2, 5)
    assert np.array_equal(one.validation, again.validation)
    assert len(one.validation) == 20
    assert sorted([*one.training, *one.validation]) == list(range(100))
    assert not np.array_equal(one.validation, TrainingData.split(data, 0.2, 6).validation)
    assert len(TrainingData.split(data, 0.0, 5).validation) == 0
    assert len(TrainingData.split(data, 0.001, 5).validation) == 1


def test_each_epoch_sees_each_sample_once_in_another_order() -> None:
    data = TrainingData.split(runs.rows(50), 0.0, 0)
    steps = list(data.order(0, 14, 8))
    assert data.batches_per_epoch(8) == 7
    first, second = steps[:7], steps[7:]
    assert Counter(np.concatenate(first)) == Counter(range(50)) == Counter(np.concatenate(second))
    assert [len(each) for each in first] == [8] * 6 + [2]
    assert not np.array_equal(first[0], second[0])
    # whoever begins in the middle gets the same
    assert all(np.array_equal(a, b) for a, b in zip(steps[9:], data.order(9, 14, 8), strict=True))


def test_a_last_single_sample_goes_with_the_batch_before() -> None:
    data = TrainingData.split(runs.rows(49), 0.0, 0)
    assert [len(each) for each in data.order(0, 6, 8)] == [8] * 5 + [9]
    assert data.batches_per_epoch(8) == 6
    assert data.batches_per_epoch(1) == 49
    assert [len(each) for each in data.order(0, 1, 49)] == [49]


def test_batches_bring_labels_of_their_samples() -> None:
    dataset = runs.rows(20, label=np.arange(20, dtype=np.uint8))
    indices = np.array([3, 8, 15])
    batch = TrainingData.split(dataset, 0.0, 0).reader().read(indices, with_answers=True)
    assert batch.label is not None
    assert (batch.label.dtype, batch.label.tolist()) == (torch.int64, [3, 8, 15])
    assert np.array_equal(batch.inputs[0].numpy(), dataset.inputs[0][indices])


def check(dataset: object, classes: int = 3) -> None:
    TrainingData.split(dataset, 0.1, 0).check(torch.zeros(4, classes))  # type: ignore[arg-type]


def test_faults_of_the_data_name_the_sample() -> None:
    check(runs.rows())
    broken = runs.rows()
    broken.inputs[0][17, 2] = np.nan
    with pytest.raises(BadTrainingData, match="Array 'input', sample 17, holds NaN"):
        check(broken)
    targets = np.zeros((64, 3), "f4")
    check(runs.rows(label=targets))
    targets[9, 1] = np.inf
    with pytest.raises(BadTrainingData, match="Array 'label', sample 9, holds NaN or infinite"):
        check(runs.rows(label=targets))


def test_labels_must_be_classes_of_the_model_or_be_ignored() -> None:
    label = np.zeros(64, np.int64)
    label[5] = -100
    check(runs.rows(label=label))
    label[40] = 3
    with pytest.raises(LabelMismatch, match=r"Label 3 of training sample 40 .* 0 to 2"):
        check(runs.rows(label=label))
    label[40], label[33] = 0, -1
    with pytest.raises(LabelMismatch, match="Label -1 of training sample 33"):
        check(runs.rows(label=label))
    with pytest.raises(LabelMismatch, match=r"\[4, 7\] do not fit outputs"):
        check(runs.rows(label=np.zeros((64, 7), np.int64)))
    with pytest.raises(LabelMismatch, match=r"\[4\] do not fit outputs of shape \[4, 3\]"):
        check(runs.rows(label=np.zeros(64)))


def test_labels_of_the_wrong_element_type_are_told_how_to_be_stored() -> None:
    with pytest.raises(LabelMismatch, match=r"float32 are taken for targets.*as integer"):
        check(runs.rows(label=np.zeros(64, "f4")))
    with pytest.raises(LabelMismatch, match=r"taken for class ids.*as floats"):
        check(runs.rows(), classes=1)


def test_labels_of_fewer_samples_than_the_example_has_fit() -> None:
    TrainingData.split(runs.rows(2), 0.0, 0).check_labels(torch.zeros(3, 3))
    with pytest.raises(LabelMismatch, match="none of the model's classes"):
        TrainingData.split(runs.rows(2, label=np.array([0, 7])), 0.0, 0).check_labels(
            torch.zeros(3, 3)
        )


def test_a_batch_larger_than_the_data_is_refused_with_both_numbers() -> None:
    data = TrainingData.split(runs.rows(64), 0.25, 0)
    with pytest.raises(InvalidSpec, match=r"batch_size 64 .* 48 samples .* 16 more are kept back"):
        data.check_batch_size(64)
    data.check_batch_size(48)
    with pytest.raises(BadTrainingData, match="holds 2 samples, of which 1 are left"):
        TrainingData.split(runs.rows(2), 0.1, 0)
