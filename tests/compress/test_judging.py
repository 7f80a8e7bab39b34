"""The original's answers: kept for all comparisons, or taken anew each time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import judging
from compress.intake import Intake, open_intake
from compress.judging import Reference, judge
from compress.result import Inputs
from compress.spec import ConvertConfig, EngineSpec

SPEC = EngineSpec(method="convert", config=ConvertConfig(), calibration_batch_size=16)


class Moody(nn.Module):
    """Writes each answer over the last one, adds how often it was called, takes single samples."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(8, 5)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1, 5))

    def forward(self, x: Tensor) -> Tensor:
        self.last.copy_(self.linear(x) + self.calls)
        self.calls += 1
        return self.last


@pytest.fixture
def intake(tmp_path: Path) -> Intake:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "e.npz",
        input=generator.standard_normal((50, 8), np.float32),
        label=generator.integers(0, 5, 50),
    )
    torch.jit.script(nn.Sequential(nn.Linear(8, 5)).eval()).save(str(tmp_path / "m.pt"))
    return open_intake(
        SPEC, Inputs(model=tmp_path / "m.pt", evaluation=tmp_path / "e.npz"), tmp_path
    )


class Counted:
    """Opens a model afresh, and counts the calls of all of them."""

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        self.build = build
        self.calls = 0

    def __call__(self) -> Callable[..., Any]:
        model = self.build().eval()

        def call(*inputs: Any) -> Any:
            self.calls += 1
            return model(*inputs)

        return call


def test_kept_answers_are_given_once_and_compared_alike(intake: Intake) -> None:
    original, other = Counted(lambda: nn.Linear(8, 5)), nn.Linear(8, 5).eval()
    torch.manual_seed(1)
    reference = Reference(intake, SPEC, original, keep=True)
    first = judge(reference, {"other": other})
    calls = original.calls
    assert calls == 4
    assert judge(reference, {"other": other}) == first
    assert judge(reference, {"other": other, "third": nn.Linear(8, 5)}).baseline == first.baseline
    assert original.calls == calls
    assert first.baseline is not None
    assert first.baseline.samples == 50


@pytest.mark.parametrize("room", [1 << 28, 500])
def test_an_original_that_keeps_state_answers_each_time_as_if_for_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    monkeypatch.setattr(judging, "_KEPT_BYTES", room)
    np.savez(tmp_path / "e.npz", input=np.random.default_rng(0).random((50, 8), np.float32))
    torch.jit.script(Moody().eval()).save(str(tmp_path / "m.pt"))
    spec = EngineSpec(method="convert", config=ConvertConfig())
    inputs = Inputs(model=tmp_path / "m.pt", evaluation=tmp_path / "e.npz")
    opened = open_intake(spec, inputs, tmp_path)
    original = Counted(lambda: torch.jit.load(str(tmp_path / "m.pt")))
    reference = Reference(opened, spec, original, keep=True)
    for _ in range(3):
        same = judge(reference, {"same": torch.jit.load(str(tmp_path / "m.pt")).eval()})
        assert same.artifacts["same"].fidelity.sqnr_db >= 200
    batches = 50  # of 20 bytes each
    assert original.calls == (batches if room > 500 else 3 * batches)
