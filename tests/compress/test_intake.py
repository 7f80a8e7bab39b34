"""Files that do not fit are refused before any work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import appraisal
from compress.errors import (
    BadCalibrationData,
    BadEvaluationData,
    CompressError,
    DeviceUnavailable,
    InputsUnknown,
    InvalidModel,
    InvalidSpec,
    LabelMismatch,
    ModelFailed,
    ShapeMismatch,
)
from compress.pipeline import run
from compress.result import Inputs
from compress.spec import ConvertConfig, EngineSpec, Method, PtqConfig
from tests.compress import zoo
from tests.compress.sinks import Recorder, out_dir


@pytest.fixture(autouse=True)
def brief_timing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here asserts a latency, so none need be known to three percent."""
    monkeypatch.setattr(appraisal, "_LATENCY_BUDGET_S", 0.3)


def broken(tmp_path: Path, **arrays: Any) -> Inputs:
    torch.jit.script(zoo.small_cnn()).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", **arrays)
    return Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")


GOOD = np.random.default_rng(0).normal(size=(8, 1, 8, 8)).astype("f4")


@pytest.mark.parametrize(
    ("arrays", "error", "told"),
    [
        (
            {"input": np.ones((8, 3, 8, 8), "f4")},
            ShapeMismatch,
            r"'input' \[batch, 3, 8, 8\].*chann",
        ),
        ({"input": np.ones((8, 64), "f4")}, ShapeMismatch, r"\[batch, 64\]"),
        ({"input_0": GOOD, "input_1": GOOD}, ShapeMismatch, r"takes 1 inputs \(image\)"),
        ({"input": GOOD.astype("i8")}, ShapeMismatch, "int64"),
        ({"input": GOOD * np.nan}, BadCalibrationData, "'input', sample 0"),
        ({"input": GOOD, "label": np.arange(7)}, LabelMismatch, "8 samples but 7"),
    ],
)
def test_data_that_does_not_fit_fails_before_any_work(
    tmp_path: Path, arrays: dict[str, Any], error: type[CompressError], told: str
) -> None:
    sink = Recorder()
    with pytest.raises(error, match=told) as caught:
        run(EngineSpec(), broken(tmp_path, **arrays), sink, out_dir(tmp_path))
    assert sink.stages == ["load"]
    assert "Traceback" not in caught.value.message
    assert str(tmp_path) not in caught.value.message
    assert list((tmp_path / "out").iterdir()) == []


def test_labels_beyond_the_classes_are_found_before_any_work(tmp_path: Path) -> None:
    inputs = broken(tmp_path, input=GOOD)
    np.savez(tmp_path / "e.npz", input=GOOD, label=np.array([0, 1, 2, 3, 4, 5, 6, 10]))
    sink = Recorder()
    with pytest.raises(LabelMismatch, match="from 0 to 10"):
        run(EngineSpec(), replace(inputs, evaluation=tmp_path / "e.npz"), sink, out_dir(tmp_path))
    assert sink.stages == ["load"]


@pytest.mark.parametrize("method", ["ptq", "convert"])
def test_nan_in_evaluation_data_is_blamed_on_the_data_before_any_work(
    tmp_path: Path, method: Method
) -> None:
    inputs = broken(tmp_path, input=GOOD)
    np.savez(
        tmp_path / "e.npz", input=np.where(np.arange(8)[:, None, None, None] == 0, np.nan, GOOD)
    )
    spec = EngineSpec(method=method, config=PtqConfig() if method == "ptq" else ConvertConfig())
    if method == "convert":
        inputs = replace(inputs, calibration=None)
    sink = Recorder()
    with pytest.raises(BadEvaluationData, match="'input', sample 0"):
        run(spec, replace(inputs, evaluation=tmp_path / "e.npz"), sink, out_dir(tmp_path))
    assert sink.stages == ["load"]


def test_other_faults_have_their_codes(tmp_path: Path) -> None:
    inputs = broken(tmp_path, input=GOOD)
    folder = out_dir(tmp_path)
    with pytest.raises(InputsUnknown):
        run(EngineSpec(), replace(inputs, calibration=None), Recorder(), folder)
    spec = EngineSpec(method="convert", config=ConvertConfig())
    with pytest.raises(InputsUnknown):
        run(spec, Inputs(model=inputs.model), Recorder(), folder)
    with pytest.raises(InvalidSpec):
        run(EngineSpec(config=ConvertConfig()), inputs, Recorder(), folder)
    spec = EngineSpec(config=PtqConfig(overrides={"convolution1": "fp32"}))
    with pytest.raises(InvalidSpec, match="matches no layer"):
        run(spec, inputs, Recorder(), folder)
    with pytest.raises(DeviceUnavailable):
        run(EngineSpec(device="cuda"), inputs, Recorder(), folder)
    (tmp_path / "junk.pt").write_bytes(b"junk")
    with pytest.raises(InvalidModel):
        run(EngineSpec(), replace(inputs, model=tmp_path / "junk.pt"), Recorder(), folder)


def test_a_model_that_raises_by_itself_is_told_apart_from_bad_data(tmp_path: Path) -> None:
    class Grumpy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            if bool(x.sum() < 1e9):
                raise ValueError("licence has run out")
            return self.fc(x)

    torch.jit.script(Grumpy()).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=np.random.default_rng(0).normal(size=(4, 4)))
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    with pytest.raises(ModelFailed, match="licence has run out"):
        run(EngineSpec(), inputs, Recorder(), out_dir(tmp_path))


def test_a_late_sample_that_the_original_fails_on_is_named(tmp_path: Path) -> None:
    class Guarded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            ids = x[:, 0].long().clamp(0, 99)
            return self.fc(x) + torch.zeros(50)[ids].unsqueeze(1)

    torch.jit.script(Guarded()).save(str(tmp_path / "m.pt"))
    data = np.random.default_rng(0).uniform(size=(8, 4)).astype("f4")
    np.savez(tmp_path / "c.npz", input=data)
    data[6, 0] = 70
    np.savez(tmp_path / "e.npz", input=data)
    inputs = Inputs(
        model=tmp_path / "m.pt", calibration=tmp_path / "c.npz", evaluation=tmp_path / "e.npz"
    )
    with pytest.raises(CompressError, match=r"samples 4 to 7.*out of"):
        run(EngineSpec(calibration_batch_size=4), inputs, Recorder(), out_dir(tmp_path))
