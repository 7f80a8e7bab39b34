"""Each loss against its formula, written out with numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from compress.train.losses import (
    class_rows,
    correlation_distance,
    label_loss,
    log_odds,
    look_like_probabilities,
    soft_divergence,
)


def softmax(rows: np.ndarray) -> np.ndarray:
    powers = np.exp(rows - rows.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.fixture
def answers() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(7, 5, generator=generator), torch.randn(7, 5, generator=generator)


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_soft_divergence_is_hintons(answers: tuple[Tensor, Tensor], temperature: float) -> None:
    ours, theirs = (softmax(each.double().numpy() / temperature) for each in answers)
    expected = temperature**2 * (theirs * np.log(theirs / ours)).sum(1).mean()
    assert float(soft_divergence(*answers, temperature)) == pytest.approx(expected, rel=1e-5)


def test_its_gradient_does_not_fade_with_the_temperature(answers: tuple[Tensor, Tensor]) -> None:
    student, teacher = answers
    sizes = []
    for temperature in (20.0, 200.0):
        leaf = student.clone().requires_grad_()
        soft_divergence(leaf, teacher, temperature).backward()
        assert leaf.grad is not None
        sizes.append(float(leaf.grad.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.05)


def test_correlation_distance_is_that_of_dist(answers: tuple[Tensor, Tensor]) -> None:
    ours, theirs = (softmax(each.double().numpy() / 2.0) for each in answers)
    between = np.mean([np.corrcoef(ours[i], theirs[i])[0, 1] for i in range(7)])
    within = np.mean([np.corrcoef(ours[:, c], theirs[:, c])[0, 1] for c in range(5)])
    expected = 4 * ((1 - between) + (1 - within))
    assert float(correlation_distance(*answers, 2.0)) == pytest.approx(expected, rel=1e-4)


def test_labels_that_are_to_be_ignored_count_nothing(answers: tuple[Tensor, Tensor]) -> None:
    ids = torch.tensor([0, 1, -100, 2, 4, -100, 3])
    known = ids >= 0
    expected = F.cross_entropy(answers[0][known], ids[known])
    torch.testing.assert_close(label_loss(answers[0], ids), expected)
    assert float(label_loss(answers[0], torch.full((7,), -100))) == 0


def test_every_token_and_every_pixel_is_a_sample() -> None:
    tokens, ids = torch.randn(2, 9, 5), torch.randint(0, 5, (2, 9))
    expected = F.cross_entropy(tokens.reshape(18, 5), ids.reshape(18))
    torch.testing.assert_close(label_loss(tokens, ids), expected)
    assert class_rows(tokens).shape == (18, 5)
    pixels, ids = torch.randn(2, 5, 4, 3), torch.randint(0, 5, (2, 4, 3))
    torch.testing.assert_close(label_loss(pixels, ids), F.cross_entropy(pixels, ids))


def test_float_targets_are_a_regression() -> None:
    answer, target = torch.randn(6, 1), torch.randn(6)
    expected = (answer[:, 0] - target).square().mean()
    torch.testing.assert_close(label_loss(answer, target), expected)


def test_a_model_that_ends_in_a_softmax_is_told_and_judged_as_its_logits(
    answers: tuple[Tensor, Tensor],
) -> None:
    logits = answers[0]
    probabilities = logits.softmax(1)
    assert look_like_probabilities(probabilities)
    assert look_like_probabilities(probabilities.reshape(7, 5, 1, 1))
    assert not look_like_probabilities(logits)
    assert not look_like_probabilities(torch.sigmoid(logits))
    ids = torch.tensor([0, 1, 2, 2, 4, 0, 3])
    torch.testing.assert_close(
        label_loss(probabilities, ids, are_probabilities=True), label_loss(logits, ids)
    )
    again = log_odds(probabilities, are_probabilities=True)
    torch.testing.assert_close(
        soft_divergence(again, answers[1], 3.0), soft_divergence(logits, answers[1], 3.0)
    )
