"""Models that keep state between calls: lifted all the same, and they go on keeping it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from compress.export.flatten import flatten
from compress.lift import Lifted, lift
from tests.compress.lift.exported import export

GIVEN = torch.randn(2, 4, generator=torch.Generator().manual_seed(3))


class InPlace(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.mix(x) * self.calls + self.calls


class Sets(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.state = torch.zeros(1)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        before = self.state
        self.state = before + self.mix(x).mean()
        self.count += 1
        return x + self.state - before * self.count


class WritesAPart(nn.Module):
    """A ring of the last rows, written through a view."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4)
        self.register_buffer("ring", torch.zeros(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        self.ring[1:] = self.ring[:2].clone()
        self.ring[0] = self.mix(x).mean(0)
        return x + self.ring.sum(0)


class Streaming(nn.Module):
    """An LSTM whose state lies in buffers, reset when another number of streams comes in."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(4, 8, batch_first=True)
        self.head = nn.Linear(8, 3)
        self.register_buffer("h", torch.zeros(1, 1, 8))
        self.register_buffer("c", torch.zeros(1, 1, 8))

    def reset(self, streams: int) -> None:
        self.h = torch.zeros(1, streams, 8)
        self.c = torch.zeros(1, streams, 8)

    def forward(self, x: Tensor) -> Tensor:
        if self.h.size(1) != x.size(0):
            self.reset(x.size(0))
        out, (self.h, self.c) = self.lstm(x.unsqueeze(1), (self.h, self.c))
        return self.head(out[:, -1])


class Nested(nn.Module):
    """State of a submodule, written from outside and from inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = Sets()
        self.out = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        if x.size(1) == 4:
            self.inner.count = 5
        return self.out(self.inner(x)) + self.inner.state


def through_a_file(lifted: Lifted) -> torch.jit.ScriptModule:
    scripted = torch.jit.script(flatten(copy.deepcopy(lifted.graph_module)).eval())
    return export(scripted, [], "script")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kept"),
    [(InPlace, ["calls"]), (Sets, ["state", "count"]),
     (WritesAPart, ["ring"]), (Streaming, ["h", "c"]),
     (Nested, ["inner.count", "inner.state"])],
)  # fmt: skip
def test_state_goes_on_through_calls_and_files(kind: type[nn.Module], kept: list[str]) -> None:
    torch.manual_seed(0)
    original = export(kind().eval(), [GIVEN], "script")
    lifted = lift(original, [GIVEN])
    assert lifted.report.state == kept
    assert lifted.report.parameters_lifted == lifted.report.parameters > 0
    models = [copy.deepcopy(lifted.graph_module), through_a_file(lifted)]
    for call in range(5):
        x = torch.randn(2 if call < 3 else 3, 4)
        expected = original(x)
        for model in models:
            torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)


def test_neither_the_original_nor_the_graph_has_been_called() -> None:
    original = export(InPlace().eval(), [GIVEN], "script")
    lifted = lift(original, [GIVEN])
    assert float(original.calls) == 0
    first = copy.deepcopy(lifted.graph_module)(GIVEN)
    torch.testing.assert_close(first, copy.deepcopy(original)(GIVEN))


def test_unused_results_do_not_drop_what_is_written() -> None:
    lifted = lift(export(InPlace().eval(), [GIVEN], "script"), [GIVEN])
    lifted.graph_module.graph.eliminate_dead_code()
    lifted.graph_module.recompile()
    first, second = (lifted.graph_module(GIVEN) for _ in range(2))
    assert not torch.allclose(first, second)
