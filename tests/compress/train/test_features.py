"""Feature losses against their formulas, written out; and the layers they are told of."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import InvalidSpec, StudentMismatch
from compress.lift import lift
from compress.train.features import (
    FeatureObjective,
    Taps,
    attention_distance,
    hint,
    relation_distance,
)
from compress.train.objective import Answers, Batch, labels_alone
from tests.compress.train import runs


def test_a_hint_is_compared_at_the_size_of_the_coarser() -> None:
    student, teacher = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 8, 8)
    pooled = teacher.reshape(2, 3, 4, 2, 4, 2).mean((3, 5))
    torch.testing.assert_close(hint(student, teacher), (student - pooled).square().mean())


def test_attention_maps_have_unit_length() -> None:
    student, teacher = torch.randn(3, 4, 5, 5), torch.randn(3, 7, 5, 5)
    expected = []
    for ours, theirs in zip(student.numpy(), teacher.numpy(), strict=True):
        maps = [(each**2).mean(0).ravel() for each in (ours, theirs)]
        a, b = (each / np.linalg.norm(each) for each in maps)
        expected.append(((a - b) ** 2).sum())
    assert float(attention_distance(student, teacher)) == pytest.approx(np.mean(expected), rel=1e-4)


def test_attention_in_sequences_goes_to_tokens_whatever_the_widths() -> None:
    student, teacher = torch.randn(3, 6, 4), torch.randn(3, 6, 9)
    maps = [F.normalize(each.square().mean(2)) for each in (student, teacher)]
    expected = (maps[0] - maps[1]).square().sum(1).mean()
    torch.testing.assert_close(attention_distance(student, teacher), expected)


def test_relations_are_those_of_the_paper() -> None:
    student, teacher = torch.randn(4, 3), torch.randn(4, 2, 3)

    def huber(a: list[float], b: list[float]) -> float:
        return float(F.smooth_l1_loss(torch.tensor(a), torch.tensor(b)))

    def distances(x: np.ndarray) -> list[float]:
        found = {(i, j): np.linalg.norm(x[i] - x[j]) for i in range(4) for j in range(4)}
        mean = np.mean([value for (i, j), value in found.items() if i != j])
        return [value / mean for value in found.values()]

    def angles(x: np.ndarray) -> list[float]:
        found = []
        for i, j, k in itertools.product(range(4), repeat=3):
            a, b = x[j] - x[i], x[k] - x[i]
            norms = np.linalg.norm(a) * np.linalg.norm(b)
            found.append(float(a @ b / norms) if norms else 0.0)
        return found

    ours, theirs = student.double().numpy(), teacher.flatten(1).double().numpy()
    expected = huber(distances(ours), distances(theirs)) + 2 * huber(angles(ours), angles(theirs))
    assert float(relation_distance(student, teacher)) == pytest.approx(expected, rel=1e-4)


def test_relations_of_equal_samples_have_a_gradient() -> None:
    student = torch.ones(3, 2, requires_grad=True)
    relation_distance(student, torch.randn(3, 2)).backward()
    assert student.grad is not None
    assert bool(torch.isfinite(student.grad).all())


@pytest.fixture
def graph() -> fx.GraphModule:
    pixels = runs.digit_data().reader().read(np.arange(4), with_answers=False).inputs[0]
    traced = torch.jit.trace(runs.net().eval(), pixels)
    return lift(traced, [pixels], verify=False).graph_module


def objective(
    graph: fx.GraphModule, kind: Any, teacher: Tensor, layer: str = "0"
) -> FeatureObjective:
    taps = Taps(graph, [layer], "student")
    graph(torch.randn(4, 1, 8, 8))
    return FeatureObjective(
        labels_alone(), kind, {"there": layer}, 0.5,
        taps=taps, student=taps.outputs, teacher={"there": teacher},
    )  # fmt: skip


def test_a_projection_is_learned_where_widths_differ(graph: fx.GraphModule) -> None:
    taught = torch.randn(4, 20, 4, 4)
    made = objective(graph, "fitnet", taught)
    (weight,) = made.parameters()
    assert weight.shape == (20, 8, 1, 1)
    images = torch.randn(4, 1, 8, 8)
    output = graph(images)
    batch = Batch([images], torch.arange(4), Answers(torch.empty(0), {"there": taught}))
    loss = made(output, batch)
    loss.total.backward()
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0
    features = F.adaptive_avg_pool2d(F.conv2d(graph.get_submodule("0")(images), weight), 4)
    expected = 0.5 * F.mse_loss(features, taught)
    torch.testing.assert_close(loss.parts["features"], expected.detach())
    total = F.cross_entropy(output, torch.arange(4)) + expected
    torch.testing.assert_close(loss.total, total)


def test_what_cannot_be_compared_is_told_with_both_shapes(graph: fx.GraphModule) -> None:
    with pytest.raises(StudentMismatch, match=r"\[4, 10\] and \[4, 6, 3, 3\].*'6'.*'there'"):
        objective(graph, "fitnet", torch.randn(4, 6, 3, 3), layer="6")
    with pytest.raises(StudentMismatch, match="no places that attention could go to"):
        objective(graph, "attention", torch.randn(4, 6), layer="6")
    objective(graph, "relational", torch.randn(4, 6, 3, 3), layer="6")


class Named(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(6, 5), nn.ReLU())
        self.head = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(x))


def test_an_unknown_layer_is_told_with_names_that_are_near() -> None:
    graph = lift(torch.jit.script(Named().eval()), [torch.randn(2, 6)]).graph_module
    with pytest.raises(InvalidSpec, match=r"student has no layer 'haed'.*: head"):
        Taps(graph, ["haed"], "student")
    with pytest.raises(InvalidSpec, match=r"teacher has no layer 'block'.*: block\.0"):
        Taps(graph, ["block"], "teacher")


def test_taps_that_are_closed_listen_no_more() -> None:
    graph = lift(torch.jit.script(Named().eval()), [torch.randn(2, 6)]).graph_module
    taps = Taps(graph, ["head"], "student")
    graph(torch.randn(2, 6))
    kept = taps.outputs["head"]
    taps.close()
    graph(torch.randn(2, 6))
    assert taps.outputs["head"] is kept
