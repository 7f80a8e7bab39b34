"""A model run without numbers: equal formulas mean equal outputs, and nothing else does."""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from compress.lift import lift
from compress.lift.agreement import ByFormulas, ByNumbers
from compress.lift.formulas import Formula, Formulas
from compress.lift.oracle import Oracle
from tests.compress.lift.exported import export

LIFT = importlib.import_module("compress.lift.lift")  # the package has a function of that name
GIVEN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))
Function = Callable[[Tensor], Tensor]


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def formulas_of(*functions: Function) -> tuple[list[Formula], Formulas]:
    formulas = Formulas(torch.jit.script(Layer()))
    found = []
    for function in functions:
        with formulas.run([GIVEN]) as (given,):
            found.append(formulas.of(function(given)))
    return found, formulas


def written(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 1] = y[:, 0] + 1
    return y


def written_elsewhere(x: Tensor) -> Tensor:
    y = x * 2
    y[:, 2] = y[:, 0] + 1
    return y


def written_through_a_view(x: Tensor) -> Tensor:
    y = x * 2
    y.view(8).mul_(3)
    return y


ALIKE: list[tuple[Function, Function]] = [
    (lambda x: torch.relu(x * 2), lambda x: (x * 2).relu_()),
    (lambda x: (x * 2).view(8), lambda x: torch.flatten(x * 2)),
    (lambda x: x.t().t() + 1, lambda x: x + 1),
    (lambda x: (x + 1).clone() * 2, lambda x: (x + 1) * 2),
    (lambda x: x @ torch.ones(4, 4), lambda x: x @ (torch.zeros(4, 4) + 1)),
    (lambda x: x * torch.tensor(2.0, dtype=torch.float64), lambda x: x * 2.0),
    (lambda x: x + torch.zeros_like(x), lambda x: x + x.new_zeros(2, 4)),
    (lambda x: torch.cat([x, torch.cat([x, x + 1])]), lambda x: torch.cat([x, x, x + 1])),
    (written, written),
]
UNLIKE: list[tuple[Function, Function]] = [
    (lambda x: x + 1, lambda x: x + 2),
    (lambda x: x + 1, lambda x: x + 1.001),
    (lambda x: x - x.t().t().flip(0), lambda x: x.flip(0) - x),
    (lambda x: (x * 2).view(4, 2), lambda x: (x * 2).view(2, 4)),
    (lambda x: x @ torch.ones(4, 4), lambda x: x @ torch.eye(4)),
    (lambda x: torch.softmax(x, 0), lambda x: torch.softmax(x, 1)),
    (lambda x: torch.relu(x), lambda x: x),
    (lambda x: x.t().contiguous().view(2, 4), lambda x: x),
    (lambda x: (x * 2).relu_() + (x * 2), lambda x: (x * 2) + (x * 2)),
    (written, lambda x: x * 2),
    (written, written_elsewhere),
    (written_through_a_view, lambda x: x * 2),
]


@pytest.mark.parametrize("pair", ALIKE)
def test_what_computes_the_same_has_one_formula(pair: tuple[Function, Function]) -> None:
    (left, right), _ = formulas_of(*pair)
    assert torch.equal(pair[0](GIVEN.clone()), pair[1](GIVEN.clone()))
    assert left == right


@pytest.mark.parametrize("pair", UNLIKE)
def test_what_computes_otherwise_has_another_formula(pair: tuple[Function, Function]) -> None:
    (left, right), _ = formulas_of(*pair)
    assert left != right


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x[x > 0],
        lambda x: x + torch.rand(2, 4) * x.bernoulli(0.5),
        lambda x: x * x.sum().item(),
        lambda x: x.nonzero(),
    ],
)
def test_what_hangs_on_numbers_or_chance_is_noticed(function: Function) -> None:
    formulas = Formulas(torch.jit.script(Layer()))
    with contextlib.suppress(RuntimeError, NotImplementedError), formulas.run([GIVEN]) as (given,):
        function(given)
    assert formulas.failure is not None


def test_counts_the_operations_of_matrix_products() -> None:
    _, formulas = formulas_of(lambda x: x @ torch.ones(4, 5))
    assert formulas.operations == 2 * 2 * 4 * 5


def large_layer() -> tuple[torch.jit.ScriptModule, list[Tensor]]:
    given = [torch.randn(2, 4)]
    return export(Layer(), given, "script"), given


def test_a_large_model_is_run_once_on_little(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formulas are believed, but not alone: the smallest batch is also run."""
    monkeypatch.setattr(LIFT, "QUICK", -1)
    shapes: list[tuple[int, ...]] = []
    run = Oracle.run

    def noted(self: Oracle, inputs: list[Tensor]) -> Tensor:
        shapes.append(tuple(inputs[0].shape))
        return run(self, inputs)  # type: ignore[no-any-return]

    monkeypatch.setattr(Oracle, "run", noted)
    report = lift(*large_layer()).report
    assert report.dynamic_dims == {"x": [0]}
    assert shapes == [(1, 4)]


def test_where_formulas_differ_both_are_run() -> None:
    module, given = large_layer()
    agreement = ByFormulas(Oracle(module), Formulas(module))
    same = lift(module, given).graph_module
    assert agreement.error(same, given) == 0.0
    assert not agreement.has_run
    with torch.no_grad():
        same.linear.weight.mul_(2)
    error = agreement.error(same, given)
    assert error is not None
    assert error > 0.01
    assert agreement.has_run
    assert error == ByNumbers(Oracle(module)).error(same, given)


def test_the_original_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(1))
            self.linear = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            self.calls.add_(1)
            return self.linear(x) + self.calls

    monkeypatch.setattr(LIFT, "QUICK", -1)
    module = export(Counting(), [GIVEN], "script")
    lifted = lift(module, [GIVEN])
    assert module.calls.item() == 0.0
    assert lifted.report.state == ["calls"]
