"""What hangs on data, keeps state or is not known stays TorchScript; the rest is lifted."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.export.flatten import flatten
from compress.lift import Lifted, lift
from tests.compress.lift.exported import export

GIVEN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))


class DataBranch(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if x.sum() > 0:
            x = self.second(x) * 2
        return x


class DataLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, int]:
        x = self.first(x)
        steps = 0
        while bool(x.abs().max() < 10) and steps < 50:
            x = x * 1.5
            steps += 1
        return x, steps


class Decoder(nn.Module):
    """Greedy decoding until all rows have said stop; the steps go into a list."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.embed = nn.Embedding(5, 8)
        self.cell = nn.GRUCell(8, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        state = torch.tanh(self.encoder(x))
        steps: list[Tensor] = []
        token = torch.zeros(x.size(0), dtype=torch.long)
        done = False
        while not done and len(steps) < 10:
            state = self.cell(self.embed(token), state)
            steps.append(self.head(state))
            token = steps[-1].argmax(1)
            done = bool((token == 3).all())
        return torch.stack(steps, 1)


class WritesInLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        written = torch.zeros_like(y)
        for step in range(int(y.abs().max() * 3)):
            written[:, 0] += step
        return written + y


def through_a_file(lifted: Lifted) -> torch.jit.ScriptModule:
    scripted = torch.jit.script(flatten(copy.deepcopy(lifted.graph_module)).eval())
    return export(scripted, [], "script")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "lifted_modules", "parameters"),
    [(DataBranch, {"first"}, 20), (DataLoop, {"first"}, 20), (Decoder, {"encoder"}, 40),
     (WritesInLoop, {"first"}, 20)],
)  # fmt: skip
def test_control_flow_on_data_stays_and_the_rest_is_lifted(
    kind: type[nn.Module], lifted_modules: set[str], parameters: int
) -> None:
    model = kind().eval()
    lifted = lift(export(model, [GIVEN], "script"), [GIVEN])
    assert set(lifted.report.modules) == lifted_modules
    assert lifted.report.parameters_lifted == parameters
    assert all("values of its data" in island.reason for island in lifted.report.islands)
    islands = sum(island.parameters for island in lifted.report.islands)
    assert lifted.report.parameters == parameters + islands
    assert set(dict(lifted.graph_module.named_parameters())) == set(
        dict(model.named_parameters())
    ), "weights that an island reads keep their names"
    loaded = through_a_file(lifted)
    for seed in range(6):  # both ways of a branch, loops of several lengths
        x = torch.randn(3, 4, generator=torch.Generator().manual_seed(seed))
        expected = model(x)
        for output in (lifted.graph_module(x), loaded(x)):
            torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-6)


class ScriptClass(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return Box(x).twice()


@torch.jit.script
class Box:
    def __init__(self, content: Tensor) -> None:
        self.content = content

    def twice(self) -> Tensor:
        return self.content * 2


def test_a_module_that_cannot_be_read_stays_whole() -> None:
    model = nn.Sequential(nn.Linear(4, 4), ScriptClass(), nn.Linear(4, 2)).eval()
    lifted = lift(export(model, [GIVEN], "script"), [GIVEN])
    (island,) = lifted.report.islands
    assert island.name == "1"
    assert "script class" in island.reason
    assert set(lifted.report.modules) == {"0", "2"}
    torch.testing.assert_close(through_a_file(lifted)(GIVEN), model(GIVEN))


def test_a_model_of_nothing_else_is_one_island() -> None:
    lifted = lift(export(ScriptClass(), [GIVEN], "script"), [GIVEN])
    assert len(lifted.report.islands) == 1
    assert lifted.report.modules == {}
    assert torch.equal(lifted.graph_module(GIVEN), GIVEN * 2)


class ReadsItem(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        longest = int(x.abs().max()) + 1
        return x * x.max().item(), x[:, :longest]


def test_numbers_read_from_data_are_computed_anew_each_time() -> None:
    lifted = lift(export(ReadsItem(), [GIVEN], "script"), [GIVEN])
    assert lifted.report.islands == []
    loaded = through_a_file(lifted)
    for scale in (0.1, 1.0, 3.0):
        for output in (lifted.graph_module(GIVEN * scale), loaded(GIVEN * scale)):
            for mine, right in zip(output, ReadsItem()(GIVEN * scale), strict=True):
                assert torch.equal(mine, right)


def test_gradients_pass_through_islands() -> None:
    lifted = lift(export(DataBranch().eval(), [GIVEN], "script"), [GIVEN])
    lifted.graph_module(GIVEN).sum().backward()
    assert lifted.graph_module.get_submodule("first").weight.grad is not None


def test_where_torch_cannot_carve_the_module_around_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Carving needs parts of torch that other versions may lack."""
    monkeypatch.delattr(torch._C, "_create_function_from_graph")
    report = lift(export(DataBranch(), [GIVEN], "script"), [GIVEN]).report
    (island,) = report.islands
    assert "_create_function_from_graph" in island.reason
    assert report.max_relative_error <= 1e-5
