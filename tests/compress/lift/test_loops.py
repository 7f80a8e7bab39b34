"""Loops over a size: lifted once, any length; their weights keep their names and learn."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.export.flatten import flatten
from compress.lift import Lifted, lift
from tests.compress.lift.exported import export

GIVEN = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(3))


class Carried(nn.Module):
    """A cell over time; the last state comes out."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.GRUCell(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            h = self.cell(x[:, t], h)
        return h


class Appends(nn.Module):
    """As torch's own example of a custom LSTM is written: parts, a state in a tuple, a list."""

    def __init__(self) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        state = (torch.zeros(x.size(0), 4), torch.zeros(x.size(0), 4))
        inputs = x.unbind(1)
        outputs: list[Tensor] = []
        for t in range(len(inputs)):
            state = self.cell(inputs[t], state)
            outputs += [self.head(state[0])]
        return torch.stack(outputs, 1), state


class Writes(nn.Module):
    """Results go into a tensor made before, and a number is counted up."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        out = torch.zeros_like(x)
        count = 0
        for t in range(x.size(1)):
            out[:, t] = self.mix(x[:, t]) * self.scale + count
            count += 2
        return out, count


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.other = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        total = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            for s in range(t + 1):
                total = total + self.mix(x[:, s]) * self.other(x[:, t])
        return self.mix(total)


class BranchesOnStep(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.rest = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.zeros(x.size(0), 4)
        for t in range(x.size(1)):
            if t == 0:
                h = self.first(x[:, t].masked_fill(x[:, t] > 1, 0.5))
            if t > 0:
                h = self.rest(x[:, t]) + h
        return h


class AsLongAsData(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(int(x.abs().sum()) % 5):
            x = torch.tanh(self.mix(x))
        return x


def check(lifted: Lifted, model: nn.Module, lengths: tuple[int, ...]) -> None:
    scripted = torch.jit.script(flatten(copy.deepcopy(lifted.graph_module)).eval())
    loaded = export(scripted, [], "script")
    for length in lengths:
        x = torch.randn(3, length, 4, generator=torch.Generator().manual_seed(length))
        expected = model(x)
        for output in (lifted.graph_module(x), loaded(x)):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("kind", [Carried, Appends, Writes, Nested, BranchesOnStep, AsLongAsData])
def test_a_loop_runs_for_any_length(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    lifted = lift(export(model, [GIVEN], "script"), [GIVEN])
    assert lifted.report.guards == []
    assert lifted.report.dynamic_dims == {"x": [0, 1]}
    check(lifted, model, (1, 2, 5, 9))
    names = {name for name, _ in lifted.graph_module.named_parameters()}
    assert names == {name for name, _ in model.named_parameters()}
    in_islands = sum(island.parameters for island in lifted.report.islands)
    assert lifted.report.parameters_lifted + in_islands == lifted.report.parameters


@pytest.mark.parametrize("kind", [Carried, Appends, Writes, Nested])
def test_weights_in_loops_learn_as_in_the_original(kind: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model = kind().eval()
    lifted = lift(export(model, [GIVEN], "script"), [GIVEN])
    assert lifted.report.islands == []
    for each in (model, lifted.graph_module):
        output = each(GIVEN)
        (output if isinstance(output, Tensor) else output[0]).square().sum().backward()
    mine = dict(lifted.graph_module.named_parameters())
    for name, parameter in model.named_parameters():
        assert mine[name].grad is not None, name
        torch.testing.assert_close(mine[name].grad, parameter.grad, rtol=1e-4, atol=1e-5)


def test_copies_of_a_loop_share_nothing() -> None:
    lifted = lift(export(Carried().eval(), [GIVEN], "script"), [GIVEN]).graph_module
    before = lifted(GIVEN)
    other = copy.deepcopy(lifted)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(lifted(GIVEN), before)
    assert not torch.equal(other(GIVEN), before)


class Parts(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, int]:
        rows = x.unbind(1)
        pieces = x.split(2, 1)
        return rows[-1] + rows[0], torch.stack(rows, 0) + pieces[0][0, 0], len(pieces)


def test_the_number_of_parts_is_the_inputs() -> None:
    lifted = lift(export(Parts(), [GIVEN], "script"), [GIVEN])
    assert lifted.report.guards == []
    check(lifted, Parts(), (2, 3, 5, 8))


class Sliced(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.stack(x.unbind(1)[1:], 0)


def test_a_use_that_fixes_the_number_of_parts_is_a_guard() -> None:
    lifted = lift(export(Sliced(), [GIVEN], "script"), [GIVEN])
    assert lifted.report.guards == ["x.size(1) == 5"]
    assert lifted.report.dynamic_dims == {"x": [0, 2]}
    with pytest.raises(RuntimeError, match=r"x\.size\(1\) == 5"):
        lifted.graph_module(torch.randn(2, 7, 4))
