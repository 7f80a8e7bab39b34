"""Each method, format and backend end to end, on a net trained on digits."""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress.errors import ExportFailed, NothingToCompress
from compress.pipeline import preflight, run
from compress.quantize.engines import engine_for
from compress.result import Inputs
from compress.spec import (
    Config,
    ConvertConfig,
    EngineSpec,
    Method,
    MixedConfig,
    PtqConfig,
)
from tests.compress import digits
from tests.compress.sinks import Recorder, out_dir

pytestmark = pytest.mark.slow


def test_one_plan_goes_into_every_format(digits_files: Inputs, tmp_path: Path) -> None:
    spec = EngineSpec(formats=("torchscript", "onnx", "openvino", "pt2"))
    result = run(spec, digits_files, Recorder(), out_dir(tmp_path))
    assert [(a.format, a.precision) for a in result.artifacts] == [
        (name, "int8") for name in ("torchscript", "onnx", "openvino", "pt2")
    ]
    assert result.undelivered == []
    close = [a.fidelity.sqnr_db for a in result.artifacts if a.fidelity is not None]
    assert max(close) - min(close) < 1.5
    assert all((tmp_path / "out" / a.name).stat().st_size == a.size_bytes for a in result.artifacts)


class Counted(nn.Module):
    """Loops as often as the data says, which ONNX files of Tersor do not hold."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3)
        self.second = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu().mean((2, 3))
        while bool(x.sum() < -1000):
            x = x + 1
        return self.second(x)


def test_a_format_that_cannot_hold_the_model_does_not_keep_the_others(tmp_path: Path) -> None:
    torch.jit.script(Counted()).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=np.random.default_rng(0).random((16, 1, 8, 8), np.float32))
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    sink = Recorder()
    result = run(EngineSpec(formats=("onnx", "torchscript")), inputs, sink, out_dir(tmp_path))
    assert [a.format for a in result.artifacts] == ["torchscript"]
    (undelivered,) = result.undelivered
    assert (undelivered.format, undelivered.code) == ("onnx", "export_failed")
    assert "stays TorchScript, which ONNX cannot hold" in undelivered.reason
    with pytest.raises(ExportFailed, match="stays TorchScript, which ONNX cannot hold"):
        run(EngineSpec(formats=("onnx",)), inputs, sink, out_dir(tmp_path / "other"))


@pytest.mark.parametrize(
    ("method", "config", "precision", "smaller"),
    [
        ("ptq", PtqConfig(mode="dynamic"), "int8", 1.9),
        ("ptq", PtqConfig(mode="dynamic", smoothquant=True), "int8", 1.9),
        ("ptq", PtqConfig(mode="weight_only"), "int8", 3.0),
        ("convert", ConvertConfig(precision="bf16"), "bf16", 1.7),
        ("mixed", MixedConfig(max_accuracy_drop=0.01), "mixed", 2.0),
    ],
)
def test_each_method_delivers(
    digits_files: Inputs,
    tmp_path: Path,
    method: Method,
    config: Config,
    precision: str,
    smaller: float,
) -> None:
    spec = EngineSpec(method=method, config=config)
    result = run(spec, digits_files, Recorder(), out_dir(tmp_path))
    (artifact,) = result.artifacts
    assert artifact.precision == precision
    assert artifact.compression_ratio > smaller
    assert artifact.quality is not None
    assert artifact.quality.drop is not None
    assert artifact.quality.drop <= 0.02
    assert (result.mixed is not None) == (method == "mixed")
    told = preflight(spec, digits_files, Recorder())
    assert [layer["name"] for layer in told["layers"]] == [layer.name for layer in result.layers]


def test_the_same_seed_gives_the_same_bytes(digits_files: Inputs, tmp_path: Path) -> None:
    def weights(folder: Path) -> dict[str, bytes]:
        run(EngineSpec(seed=7), digits_files, Recorder(), out_dir(folder))
        with zipfile.ZipFile(folder / "out" / "model.int8.torchscript.pt") as archive:
            return {
                _plain(name.partition("/")[2].encode()).decode(): _plain(archive.read(name))
                for name in archive.namelist()
                if "/data/" in name or "/constants/" in name or name.endswith(".py")
            }

    def _plain(content: bytes) -> bytes:
        # torch numbers the classes of a process; scales are literals of the code
        return re.sub(rb"_mangle_\d+", b"", content)

    first = weights(tmp_path / "first")
    assert first == weights(tmp_path / "second")
    assert len(first) > 3


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_a_file_for_arm_is_measured_on_the_kernels_it_is_for(
    digits_files: Inputs, tmp_path: Path, mode: Literal["static", "dynamic"]
) -> None:
    spec = EngineSpec(backend="arm", config=PtqConfig(mode=mode))
    before = torch.backends.quantized.engine
    result = run(spec, digits_files, Recorder(), out_dir(tmp_path))
    assert torch.backends.quantized.engine == before
    assert result.provenance["activation_range"] == ("full" if mode == "static" else None)
    (artifact,) = result.artifacts
    _, _, held, label = digits.images()
    with engine_for("arm"), torch.no_grad():
        loaded = torch.jit.load(str(tmp_path / "out" / artifact.name))
        # in the batches that were judged: dynamic scales are those of a batch
        answers = torch.cat([loaded(part) for part in held.split(spec.calibration_batch_size)])
        top1 = float((answers.argmax(1) == label).float().mean())
    assert artifact.quality is not None
    assert artifact.quality.value == pytest.approx(top1)
    assert artifact.quality.drop is not None
    assert artifact.quality.drop <= 0.01


def test_half_precision_is_stored_in_half(digits_files: Inputs, tmp_path: Path) -> None:
    def sizes(config: ConvertConfig) -> dict[str, int]:
        spec = EngineSpec(method="convert", config=config, formats=("torchscript", "onnx"))
        result = run(spec, digits_files, Recorder(), out_dir(tmp_path / config.precision))
        return {artifact.format: artifact.size_bytes for artifact in result.artifacts}

    whole = sizes(ConvertConfig())
    for half in (sizes(ConvertConfig(precision="fp16")), sizes(ConvertConfig(precision="bf16"))):
        assert half.keys() == whole.keys() == {"torchscript", "onnx"}
        assert all(half[name] < 0.6 * whole[name] for name in whole)


def test_what_takes_no_candidate_has_nothing_to_compress(
    digits_files: Inputs, tmp_path: Path
) -> None:
    spec = EngineSpec(method="mixed", config=MixedConfig(candidates=("fp32",)))
    with pytest.raises(NothingToCompress, match="weighted layers takes one of the candidates"):
        run(spec, digits_files, Recorder(), out_dir(tmp_path))


def test_a_format_asked_for_twice_is_written_once(digits_files: Inputs, tmp_path: Path) -> None:
    spec = EngineSpec(formats=("torchscript", "torchscript"))
    result = run(spec, digits_files, Recorder(), out_dir(tmp_path))
    assert [artifact.format for artifact in result.artifacts] == ["torchscript"]
