"""Files that do not fit are refused before any work begins."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import (
    BadCalibrationData,
    BadEvaluationData,
    BadSignature,
    CompressError,
    DeviceUnavailable,
    InputsUnknown,
    InvalidModel,
    InvalidSpec,
    LabelMismatch,
    ModelFailed,
    ShapeMismatch,
)
from compress.intake import Intake, open_intake
from compress.pipeline import run
from compress.result import Inputs
from compress.spec import ConvertConfig, DistillConfig, EngineSpec, Method, PtqConfig, TensorSpec
from compress.structure import batch_length, tensors_in
from tests.compress import structured, zoo
from tests.compress.sinks import Recorder, out_dir


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


def opened(model: nn.Module, tmp_path: Path, *datasets: dict[str, Any], **inputs: Any) -> Intake:
    """Open a scripted model with calibration and, if given, evaluation arrays."""
    torch.jit.script(model.eval()).save(str(tmp_path / "m.pt"))
    files = {}
    for role, arrays in zip(("calibration", "evaluation"), datasets, strict=False):
        files[role] = tmp_path / f"{role}.npz"
        np.savez(files[role], **arrays)
    method: Method = "ptq" if datasets else "convert"
    config = PtqConfig() if datasets else ConvertConfig()
    spec = EngineSpec(method=method, config=config, calibration_batch_size=3)
    return open_intake(spec, Inputs(model=tmp_path / "m.pt", **files, **inputs), tmp_path)


ROWS = GOOD[:, 0, 0, :4]
STRUCTURED = {
    "input_0.ids": ROWS,
    "input_0.inner.sizes.0": ROWS,
    "input_0.inner.sizes.1": np.full(8, 3),
    "input_1.x": ROWS.astype("f2"),
}


def test_batches_hold_one_entry_per_argument(tmp_path: Path) -> None:
    arrays = STRUCTURED | {"input_3": np.full(8, 0.5), "label": np.arange(8) % 3}
    intake = opened(structured.Structured(), tmp_path, arrays)
    single, several = intake.probes()
    assert [batch_length(batch) for batch in (single, several)] == [1, 3]
    batch, more, bias, scale = several
    assert (type(batch).__name__, batch.mask, bias, scale) == ("Outer", None, None, 0.5)
    assert (batch.ids.shape, batch.inner.sizes[1]) == ((3, 4), 3)
    assert more["x"].dtype == torch.float32
    batches = list(intake.calibration_batches(EngineSpec(calibration_batch_size=3)))
    assert [batch_length(batch) for batch in batches] == [3, 3, 2]
    assert intake.original.run(batches[0]).width == 4
    assert intake.metric == "agreement"


def test_two_datasets_must_give_the_same_arguments_and_numbers(tmp_path: Path) -> None:
    model = structured.Structured()
    opened(model, tmp_path, STRUCTURED, STRUCTURED)
    other = STRUCTURED | {"input_0.inner.sizes.1": np.full(8, 4)}
    with pytest.raises(ShapeMismatch, match="is 3 in the calibration data and 4 in"):
        opened(model, tmp_path, STRUCTURED, other)
    with pytest.raises(ShapeMismatch, match=r"only one of them has input_2, input_3\."):
        opened(model, tmp_path, STRUCTURED | {"input_2": ROWS[:, :3], "input_3": np.ones(8)}, other)


def test_declared_inputs_of_any_type_make_batches_up(tmp_path: Path) -> None:
    declared = (
        TensorSpec(name="batch.ids", shape=("batch", 4)),
        TensorSpec(name="batch.inner.sizes.0", shape=("batch", 4), value=2),
        TensorSpec(name="batch.inner.sizes.1", dtype="int64", value=3),
        TensorSpec(name="more.x", shape=("batch", 4), dtype="float64"),
        TensorSpec(name="scale", value=0.5),
    )
    intake = opened(structured.Structured(), tmp_path, model_inputs=declared)
    assert [batch_length(batch) for batch in intake.made_up] == [1, 3]
    batch, _, bias, scale = intake.made_up[1]
    assert batch.inner.sizes[0].tolist() == [[2.0] * 4] * 3
    assert (batch.inner.sizes[1], bias, scale) == (3, None, 0.5)
    assert len(tensors_in(intake.made_up[1])) == 3
    with pytest.raises(ShapeMismatch, match=r"argument 'more' takes more\.KEY"):
        opened(structured.Structured(), tmp_path, model_inputs=declared[:3])


def test_training_data_stands_in_for_calibration_and_must_fit(tmp_path: Path) -> None:
    torch.jit.script(zoo.mlp(4)).save(str(tmp_path / "m.pt"))
    spec = EngineSpec(method="distill", config=DistillConfig(prune=0.5))
    inputs = Inputs(model=tmp_path / "m.pt")
    with pytest.raises(InputsUnknown, match="'distill' learns from samples"):
        open_intake(spec, inputs, tmp_path)
    np.savez(tmp_path / "t.npz", input=ROWS, label=np.arange(8) % 3)
    trained = replace(inputs, training=tmp_path / "t.npz")
    intake = open_intake(spec, trained, tmp_path)
    assert intake.training is not None
    assert intake.calibration is intake.training
    assert intake.metric == "agreement"
    np.savez(tmp_path / "wide.npz", input=GOOD.reshape(8, 64))
    with pytest.raises(ShapeMismatch, match=r"the training data \('input' \[batch, 64\]"):
        open_intake(spec, replace(inputs, training=tmp_path / "wide.npz"), tmp_path)


class Spoken(nn.Module):
    def forward(self, x: Tensor, language: str) -> Tensor:
        return x if language == "en" else -x


class Silent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.constant = nn.Parameter(torch.ones(2))

    def forward(self) -> Tensor:
        return self.constant


@pytest.mark.parametrize("model", [Spoken, Silent])
def test_a_forward_that_arrays_cannot_be_given_to(model: type[nn.Module], tmp_path: Path) -> None:
    with pytest.raises(BadSignature):
        opened(model(), tmp_path, {"input": ROWS})


class Streaming(nn.Module):
    """Adds what came before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 2)
        self.register_buffer("before", torch.zeros(1, 2))

    def forward(self, x: Tensor) -> Tensor:
        self.before = self.layer(x).mean(0, keepdim=True) + self.before
        return self.before.expand(x.size(0), 2)


def test_looking_at_a_model_leaves_its_state_as_it_came(tmp_path: Path) -> None:
    intake = opened(Streaming(), tmp_path, {"input": ROWS}, {"input": ROWS})
    assert len(intake.probes()) == 2
    assert len(list(intake.calibration_batches(EngineSpec()))) == 1
    assert not intake.model.before.any()
