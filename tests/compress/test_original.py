"""What an uploaded model takes, and whether it keeps state."""

from __future__ import annotations

import io
import threading
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from compress import original as original_module
from compress.errors import ModelFailed, RunTimeout
from compress.lift import forward_arguments, has_state, load_model
from compress.original import Original, load_original
from compress.time_limit import within
from tests.compress import structured


def reloaded(model: nn.Module) -> torch.jit.ScriptModule:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(model.eval()), buffer)
    buffer.seek(0)
    return torch.jit.load(buffer).eval()  # type: ignore[no-untyped-call, no-any-return]


def test_arguments_are_read_with_the_fields_of_named_tuples() -> None:
    batch, more, bias, scale = forward_arguments(reloaded(structured.Structured()))
    outer, inner = (f"__torch__.tests.compress.structured.{name}" for name in ("Outer", "Inner"))
    assert batch.fields == {
        outer: {"ids": "Tensor", "inner": inner, "mask": "Optional[Tensor]"},
        inner: {"sizes": "Tuple[Tensor, int]"},
    }
    assert (more.type, more.fields, more.has_default) == ("Dict[str, Tensor]", {}, False)
    assert (bias.type, bias.has_default, bias.default) == ("Optional[Tensor]", True, None)
    assert (scale.type, scale.default) == ("float", 1.0)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Conv1d(2, 2, 1), nn.BatchNorm1d(2), nn.ReLU(inplace=True))
        self.register_buffer("state", torch.zeros(1, 2, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x) + self.state
        y += 1
        y[0] = 2
        return y  # type: ignore[no-any-return]


class Assigns(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.state = self.layer(x) + self.state
        return self.state


class Adds(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.state.add_(x.sum())
        return self.layer(x) + self.state  # type: ignore[no-any-return]


class WritesThroughAView(Base):
    def forward(self, x: Tensor) -> Tensor:
        self.state.view(-1)[0] += x.sum()
        return self.layer(x) + self.state  # type: ignore[no-any-return]


class Counts(Base):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.layer(x) * self.calls  # type: ignore[no-any-return]


class Remembers(Base):
    def __init__(self) -> None:
        super().__init__()
        self.seen = torch.jit.Attribute({}, dict[str, Tensor])  # type: ignore[no-untyped-call]

    def forward(self, x: Tensor) -> Tensor:
        if "last" in self.seen:
            x = x + self.seen["last"]
        self.seen["last"] = x
        return self.layer(x)  # type: ignore[no-any-return]


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Adds()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)  # type: ignore[no-any-return]


STATEFUL = [Assigns, Adds, WritesThroughAView, Counts, Remembers, Nested]


@pytest.mark.parametrize("model", STATEFUL)
def test_a_model_that_writes_to_itself_answers_each_run_alike(
    model: type[nn.Module],
) -> None:
    module = reloaded(model())
    assert has_state(module)
    original = Original(module, torch.float32, (), keeps_state=True)
    sample = torch.randn(1, 2, 3, generator=torch.Generator().manual_seed(0))
    first = original.run([sample]).clone()
    assert original.accepts([sample])
    assert torch.equal(original.run([sample]), first)
    with torch.no_grad():
        assert not torch.equal(module(sample).clone(), module(sample).clone())


def test_what_only_training_writes_is_no_state() -> None:
    assert not has_state(reloaded(Base()))


def test_a_loaded_file_says_all_of_it(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    torch.jit.save(torch.jit.script(structured.Structured().double().eval()), str(path))
    original = load_original(path)
    assert (original.dtype, original.keeps_state) == (torch.float64, False)
    assert load_model(path) is not original.module


def test_floats_are_cast_at_any_depth() -> None:
    original = Original(reloaded(structured.Structured().double()), torch.float64, (), False)
    rows = torch.ones(2, 4)
    inner = structured.Inner((rows, 3))
    answer = original.run([structured.Outer(rows, inner, None), {"x": rows}, None, 0.5])
    assert answer.logits.dtype == torch.float64


class Endless(nn.Module):
    """Ends within seconds after all, so that its thread does not outlive the tests."""

    def forward(self, x: Tensor) -> Tensor:
        steps = 0
        while bool(x.abs().max() < 1e9) and steps < 100_000:
            x = x * 1.0
            steps += 1
        return x


@pytest.mark.slow
def test_a_model_that_does_not_end_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(original_module, "FIRST_RUN_LIMIT_S", 0.05)
    model = reloaded(Endless())
    original = Original(model, torch.float32, tuple(forward_arguments(model)), keeps_state=False)
    with pytest.raises(RunTimeout, match=r"longer than 0\.05 seconds") as raised:
        original.first_run([torch.ones(2)])
    assert raised.value.code == "run_timeout"
    for thread in threading.enumerate():
        if thread.name == "limited":
            thread.join()


def test_within_its_limit_a_call_returns_or_raises_as_it_would() -> None:
    assert within(5, lambda: torch.is_grad_enabled(), "it")

    def fail() -> None:
        raise ModelFailed("so")

    with pytest.raises(ModelFailed, match="so"):
        within(5, fail, "it")
