"""Branches, loops, containers and in-place writes of scripted models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from compress.errors import LiftMismatch, ModelFailed
from compress.lift import lift
from tests.compress.lift.exported import HOWS, How, export

GIVEN = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(7))


class Containers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleDict({"a": nn.Linear(8, 8), "b": nn.Linear(8, 8)})
        self.embed = nn.Embedding(10, 8)

    def double(self, x: Tensor, by: int = 2) -> Tensor:
        return x * by

    def forward(self, tokens: Tensor, extra: Tensor | None = None) -> dict[str, Tensor]:
        x = self.embed(tokens)
        if extra is not None:
            x = x + extra
        seen: list[Tensor] = []
        for name, block in self.blocks.items():
            x = block(x)
            if name == "a":
                seen.append(x)
        assert x.dim() == 3
        with torch.no_grad():
            total = torch.stack(seen, 0).sum(0)
        return {"out": self.double(x), "seen": total[..., : len(seen)]}


@pytest.mark.parametrize("inputs", [1, 2])
def test_lists_dicts_methods_and_optional_inputs(inputs: int) -> None:
    tokens = torch.randint(0, 10, (3, 5))
    given = [tokens, torch.randn(3, 5, 8)][:inputs]
    model = Containers()
    lifted = lift(export(model, given, "script"), given)
    assert lifted.report.guards == [["extra is None"], []][inputs - 1]
    output, expected = lifted.graph_module(*given), model(*given)
    assert output.keys() == expected.keys()
    assert all(torch.allclose(output[key], expected[key]) for key in expected)


class Loops(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        i = 0
        while i < 3:
            x = self.mix(x)
            i += 1
        for j in range(4):
            if j % 2 == 0:
                continue
            x = x + j
        return x


def test_loops_of_fixed_length_unroll() -> None:
    lifted = lift(export(Loops(), [GIVEN], "script"), [GIVEN])
    assert lifted.report.guards == []
    assert sum(node.target == "mix" for node in lifted.graph_module.graph.nodes) == 3


class SizeBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.size(3) > 4 else x * 3


def test_a_branch_on_a_size_is_taken_as_in_the_example_and_said_so() -> None:
    report = lift(export(SizeBranch(), [GIVEN], "script"), [GIVEN]).report
    assert report.guards == ["x.size(3) > 4"]


class BatchBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) * 2 if x.size(0) > 2 else torch.relu(x) * 3


def test_a_branch_on_the_batch_size_stays_torchscript() -> None:
    model = nn.Sequential(BatchBranch(), nn.Conv2d(3, 4, 1))
    lifted = lift(export(model, [GIVEN], "script"), [GIVEN])
    (island,) = lifted.report.islands
    assert "batch" in island.reason
    assert lifted.report.parameters_lifted == lifted.report.parameters == 16
    for batch in (1, 5):
        x = torch.randn(batch, 3, 8, 8)
        assert torch.equal(lifted.graph_module(x), model(x))


class Check(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) != 3:
            raise ValueError(f"need 3 channels, got {x.size(1)}")
        return x


def test_a_check_that_passes_disappears_and_one_that_fails_is_passed_on() -> None:
    module = export(Check(), [GIVEN], "script")
    assert lift(module, [GIVEN]).report.guards == []
    with pytest.raises(ModelFailed) as failed:
        lift(module, [GIVEN[:, :2]])
    assert failed.value.message == ("The model raised on the samples given: need 3 channels, got 2")


class Random(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


def test_a_random_model_is_called_random() -> None:
    with pytest.raises(LiftMismatch, match="another output each time"):
        lift(export(Random(), [GIVEN], "script"), [GIVEN])


class Writes(nn.Module):
    """Writes through slices, through views of views, and reads the views afterwards."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        y = torch.zeros_like(x)
        early = y[:, :2]
        y[:, 1:3] = x[:, 1:3]
        y[:, 0] = 1.0
        y[:, :, 0] += 2
        turned = y.transpose(2, 3)
        turned[:, :, 1].mul_(3)
        flat = y.view(y.size(0), -1)
        flat.clamp_(-1, 4)
        return y, early, turned


@pytest.mark.parametrize("how", HOWS)
def test_writes_through_views_reach_every_alias(how: How) -> None:
    lifted = lift(export(Writes(), [GIVEN], how), [GIVEN]).graph_module
    more = torch.randn(4, 3, 8, 8)
    before = more.clone()
    for mine, right in zip(lifted(more), Writes()(more), strict=True):
        assert torch.equal(mine, right)
    assert torch.equal(more, before)


class MakesTensors(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        scale = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        size = torch.tensor([x.size(0), 7])
        return x.sum() * scale, size, torch.tensor(x.size(3)) + torch.as_tensor(x.size(0) * 0.5)


def test_tensors_are_made_of_numbers_and_of_sizes() -> None:
    lifted = lift(export(MakesTensors(), [GIVEN], "script"), [GIVEN])
    assert lifted.report.islands == []
    assert lifted.report.guards == []
    more = torch.randn(5, 3, 4, 6)
    for mine, right in zip(lifted.graph_module(more), MakesTensors()(more), strict=True):
        torch.testing.assert_close(mine, right)
        assert mine.dtype == right.dtype
