"""The whole zoo: every architecture computes the same, keeps its names, and can learn."""

from __future__ import annotations

import copy
import importlib
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

from compress.lift import Lifted, lift
from compress.lift.compare import relative_error
from compress.structure import map_tensors, tensors_in
from tests.compress.zoo.entry import Entry, How, export, load
from tests.compress.zoo.registry import ENTRIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Scripted"),  # the models' own
]

LIFT = importlib.import_module("compress.lift.lift")  # the package has a function of that name

TOLERANCE = 1e-5
GRADIENT_TOLERANCE = 1e-4

# A loop's body holds layers under their own names, which the graph has at its top too.
IN_A_LOOP = re.compile(r"(?:^|.*\.)loop(?:_\d+)?\.body\.")

CASES = [(name, how) for name, entry in ENTRIES.items() for how in entry.hows]


@dataclass(frozen=True)
class Case:
    """An exported model, lifted. Where calls leave traces, those who call take copies."""

    entry: Entry
    how: How
    file: bytes
    original: torch.jit.ScriptModule
    lifted: Lifted

    def fresh(self) -> tuple[torch.jit.ScriptModule, nn.Module]:
        """Original and lifted, neither of which remembers other calls."""
        if self.entry.stateful:
            return load(self.file), copy.deepcopy(self.lifted.graph_module)
        return self.original, self.lifted.graph_module

    @property
    def in_islands(self) -> tuple[str, ...]:
        return self.entry.in_islands if self.how in self.entry.islands else ()

    @property
    def left_out(self) -> tuple[str, ...]:
        return self.entry.unused + self.in_islands

    def first_names(self) -> dict[str, str]:
        """Every name of a parameter, and the first of the names that share its memory."""
        first: dict[int, str] = {}
        return {
            name: first.setdefault(value.data_ptr(), name)
            for name, value in self.original.named_parameters(remove_duplicate=False)
        }


@pytest.fixture(autouse=True)
def one_thread(two_threads_and_a_seed: None) -> None:
    """Nets as small as these only wait for a second thread."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module", params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def case(request: pytest.FixtureRequest) -> Case:
    name, how = request.param
    entry = ENTRIES[name]
    torch.set_num_threads(1)
    file = export(entry.model(), entry.example(), how)
    original = load(file)
    return Case(entry, how, file, original, lift(original, entry.example()))


def call(module: nn.Module, inputs: list[Any]) -> Any:
    # without the executor's profiling, which makes first calls slow
    with optimized_execution(False):
        return module(*map_tensors(inputs, Tensor.clone))


def test_computes_the_same_at_other_batch_sizes_and_extents(case: Case) -> None:
    assert case.lifted.report.max_relative_error <= TOLERANCE
    for batch, extent in case.entry.sizes(case.how):
        original, lifted = case.fresh()
        given = case.entry.inputs(False, batch, extent)
        with torch.no_grad():
            for _ in range(3 if case.entry.stateful else 1):
                error = relative_error(call(lifted, given), call(original, given))
                assert error <= TOLERANCE, f"{batch} x {extent}"


def test_keeps_the_names_of_modules_and_parameters(case: Case) -> None:
    graph_module, report = case.lifted.graph_module, case.lifted.report
    state = dict(case.original.state_dict())
    islands = tuple(f"{island.name}." for island in report.islands)
    for name, value in graph_module.state_dict().items():
        if not name.startswith(islands):
            assert torch.equal(value, state[IN_A_LOOP.sub("", name)]), name
    first = case.first_names()
    kept = {first.get(name) for name, _ in graph_module.named_parameters(remove_duplicate=False)}
    wanted = {name for name in first.values() if not name.startswith(case.left_out)}
    assert wanted - kept == set()
    # a function like dropout becomes a module with a name of its own, but holds nothing
    modules = {name for name in report.modules if graph_module.get_submodule(name).state_dict()}
    assert modules <= {name for name, _ in case.original.named_modules()}


def test_lifts_every_parameter_and_leaves_no_island(case: Case) -> None:
    report = case.lifted.report
    parameters = dict(case.original.named_parameters())
    expected = sum(
        value.numel() for name, value in parameters.items() if not name.startswith(case.left_out)
    )
    assert report.parameters == sum(value.numel() for value in parameters.values())
    assert report.parameters_lifted == expected
    assert len(report.islands) == case.entry.islands.get(case.how, 0)


def test_a_gradient_reaches_what_the_output_depends_on(case: Case) -> None:
    eager = load(case.file) if case.how == "file" else case.entry.model()
    given = case.entry.example()
    first = case.first_names()
    expected = {first[name]: value for name, value in gradients(eager, given).items()}
    lifted = case.fresh()[1]
    actual = {first[name]: value for name, value in gradients(lifted, given).items()}
    missing = expected.keys() - actual.keys()
    assert {name for name in missing if not name.startswith(case.in_islands)} == set()
    largest = max(float(value.abs().max()) for value in expected.values())
    for name in expected.keys() & actual.keys():
        difference = float((actual[name] - expected[name]).abs().max())
        assert difference <= GRADIENT_TOLERANCE * largest, name


def test_large_models_are_lifted_as_small_ones(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if each model were too large to run for every comparison."""
    monkeypatch.setattr(LIFT, "QUICK", -1)
    other = lift(case.original, case.entry.example())
    assert other.graph_module.code == case.lifted.graph_module.code
    mine, theirs = other.report.to_dict(), case.lifted.report.to_dict()
    for key in ("seconds", "max_relative_error"):
        del mine[key], theirs[key]
    assert mine == theirs
    assert other.report.max_relative_error <= TOLERANCE


def gradients(module: nn.Module, inputs: list[Any]) -> dict[str, Tensor]:
    """The gradient of every parameter that gets one, for a random mixture of all outputs."""
    for parameter in module.parameters():
        parameter.requires_grad_(parameter.is_floating_point())
    generator = torch.Generator().manual_seed(0)
    loss = torch.zeros(())
    for output in tensors_in(call(module, inputs)):
        if output.requires_grad:
            loss = loss + (output * torch.randn(output.shape, generator=generator)).sum()
    loss.backward()
    return {
        name: parameter.grad
        for name, parameter in module.named_parameters()
        if parameter.grad is not None
    }
