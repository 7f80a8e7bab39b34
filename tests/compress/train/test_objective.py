"""Losses of a step's parts add up to the step's loss."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from compress.train.objective import AnswerLoss, AnswerObjective, Answers, Batch

GENERATOR = torch.Generator().manual_seed(0)
OUTPUT = torch.randn(11, 4, generator=GENERATOR)
TAUGHT = torch.randn(11, 4, generator=GENERATOR)
IDS = torch.tensor([0, 1, 2, 3, -100, -100, -100, 1, -100, 2, 0])


def batch() -> Batch:
    return Batch([OUTPUT], IDS, Answers(TAUGHT))


@pytest.mark.parametrize("loss", ["kl_ce", "kl", "mse"])
@pytest.mark.parametrize("count", [2, 3, 4, 64])
def test_parts_add_up_however_labels_are_spread(loss: AnswerLoss, count: int) -> None:
    objective = AnswerObjective(loss, temperature=2.0, alpha=0.6, has_labels=True)
    whole = objective(OUTPUT, batch())
    parts = batch().parts(count)
    assert min(len(part) for part in parts) >= 2
    assert sum(len(part) for part in parts) == 11
    losses = [objective(part.inputs[0], part) for part in parts]
    torch.testing.assert_close(torch.stack([one.total for one in losses]).sum(), whole.total)
    for name, value in whole.parts.items():
        torch.testing.assert_close(torch.stack([one.parts[name] for one in losses]).sum(), value)


def test_teacher_and_labels_are_weighed() -> None:
    found = AnswerObjective("mse", temperature=1.0, alpha=0.25, has_labels=True)(OUTPUT, batch())
    teacher, labels = F.mse_loss(OUTPUT, TAUGHT), F.cross_entropy(OUTPUT, IDS)
    torch.testing.assert_close(found.total, 0.25 * teacher + 0.75 * labels)
    torch.testing.assert_close(found.parts["labels"], 0.75 * labels)


def test_without_labels_the_teacher_has_all_the_weight() -> None:
    alone = AnswerObjective("kl_ce", temperature=2.0, alpha=0.3, has_labels=False)
    assert (alone.needs_teacher, alone.needs_labels) == (True, False)
    kl = AnswerObjective("kl", temperature=2.0, alpha=0.3, has_labels=True)
    torch.testing.assert_close(alone(OUTPUT, batch()).total, kl(OUTPUT, batch()).total)
    labels = AnswerObjective("kl_ce", temperature=2.0, alpha=0.0, has_labels=True)
    assert (labels.needs_teacher, labels.needs_labels) == (False, True)


def test_mixed_samples_have_both_labels() -> None:
    ids, other = IDS.clamp_min(0), IDS.clamp_min(0).flip(0)
    mixed = Batch([OUTPUT], ids, other_label=other, mixed=0.3)
    objective = AnswerObjective("kl_ce", temperature=1.0, alpha=0.0, has_labels=True)
    expected = 0.3 * F.cross_entropy(OUTPUT, ids) + 0.7 * F.cross_entropy(OUTPUT, other)
    torch.testing.assert_close(objective(OUTPUT, mixed).total, expected)
