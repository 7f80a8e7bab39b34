from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from compress import appraisal, benchmark
from compress.report import write
from compress.result import Inputs
from tests.compress import digits


class NoProbe:
    """Stands in for the measuring process, which takes seconds to start."""

    def __enter__(self) -> NoProbe:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def peak_bytes(self, *_: object) -> int:
        return 2**20


@pytest.fixture(autouse=True)
def brief_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few assert a figure of speed or memory; those that do put another fixture in this place."""
    monkeypatch.setattr(benchmark, "RACE_SHARE_S", 0.03)
    monkeypatch.setattr(benchmark, "THROUGHPUT_SHARE_S", 0.01)
    monkeypatch.setattr(appraisal, "MemoryProbe", NoProbe)


@pytest.fixture(autouse=True)
def no_plots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Drawing takes longer than compressing such small models; the report's tests draw."""
    monkeypatch.setattr(write, "draw_plots", lambda result: {"files": [], "layers": []})
    monkeypatch.setattr(write, "mixed_plots", lambda result: [])


@pytest.fixture
def digits_files(tmp_path: Path) -> Inputs:
    """A trained net, training samples to calibrate on, and held-out ones with labels."""
    training, _, held, labels = digits.images()
    torch.jit.trace(digits.trained(), training[:1]).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=training[:200].numpy())
    np.savez_compressed(tmp_path / "e.npz", input=held.numpy(), label=labels.numpy())
    return Inputs(
        model=tmp_path / "m.pt", calibration=tmp_path / "c.npz", evaluation=tmp_path / "e.npz"
    )
