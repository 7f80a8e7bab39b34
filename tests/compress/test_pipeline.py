"""The engine end to end: real files in, real files out."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress import pipeline
from compress.errors import DeviceUnavailable, ModelFailed
from compress.pipeline import preflight, run
from compress.result import Inputs
from compress.spec import (
    ConvertConfig,
    EngineSpec,
    PtqConfig,
    TensorSpec,
)
from tests.compress import digits, zoo
from tests.compress.sinks import Recorder, out_dir


@pytest.mark.slow
def test_trained_digits_lose_at_most_a_point_and_shrink(
    digits_files: Inputs, tmp_path: Path
) -> None:
    sink = Recorder()
    result = run(EngineSpec(calibration_samples=128), digits_files, sink, out_dir(tmp_path))
    [artifact] = result.artifacts
    assert result.baseline.quality is not None
    assert result.baseline.quality.value > 0.97
    assert artifact.quality is not None
    assert artifact.quality.samples == 517
    assert artifact.quality.drop is not None
    assert artifact.quality.drop <= 0.01
    assert artifact.compression_ratio >= 2.5
    assert [layer.precision for layer in result.layers] == ["int8"] * 4
    # the figures are those of the file on disk, run with plain torch
    _, _, held, label = digits.images()
    path = tmp_path / "out" / artifact.name
    hits = (torch.jit.load(str(path))(held).argmax(1) == label).float().mean()
    assert artifact.quality.value == pytest.approx(float(hits), abs=1e-6)
    assert artifact.size_bytes == path.stat().st_size
    assert artifact.name == "model.int8.torchscript.pt"
    assert artifact.speedup is not None
    assert artifact.verdict == ("faster" if artifact.speedup.ci95[0] > 1 else "not_faster")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest == json.loads(json.dumps(result.to_dict()))
    assert len(manifest["provenance"]["dataset_sha256"]) == 2
    assert manifest["provenance"]["activation_range"] == "reduced"
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "model.int8.torchscript.pt",
        "report.html",
    ]
    assert sink.stages == [
        "load", "lift", "calibrate", "convert", "export", "evaluate", "benchmark",
    ]  # fmt: skip
    assert sink.fractions == sorted(sink.fractions)
    assert sink.fractions[-1] == 1.0
    assert "calibrating 96/128" in sink.messages


def test_without_evaluation_quality_is_agreement_on_calibration(
    digits_files: Inputs, tmp_path: Path
) -> None:
    inputs = replace(digits_files, evaluation=None)
    result = run(EngineSpec(calibration_samples=64), inputs, Recorder(), out_dir(tmp_path))
    quality = result.artifacts[0].quality
    assert quality is not None
    assert (quality.metric, quality.samples) == ("agreement", 64)
    assert result.artifacts[0].fidelity is not None
    assert result.artifacts[0].fidelity.sqnr_db > 20


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_convert_needs_shapes_only(tmp_path: Path, precision: str) -> None:
    torch.jit.script(zoo.small_cnn()).save(str(tmp_path / "m.pt"))
    inputs = Inputs(
        model=tmp_path / "m.pt",
        model_inputs=(TensorSpec(name="image", shape=("batch", 1, 8, 8)),),
    )
    config = ConvertConfig(precision=precision)  # type: ignore[arg-type]
    spec = EngineSpec(method="convert", config=config)
    result = run(spec, inputs, Recorder(), out_dir(tmp_path))
    assert result.artifacts[0].quality is None
    assert result.artifacts[0].fidelity is not None
    assert result.artifacts[0].fidelity.sqnr_db > 50
    loaded = torch.jit.load(str(tmp_path / "out" / f"model.{precision}.torchscript.pt"))
    assert loaded(image=torch.randn(9, 1, 8, 8)).shape == (9, 10)


def test_a_double_model_takes_and_gives_double(tmp_path: Path) -> None:
    model = zoo.mlp().double()
    torch.jit.trace(model, torch.randn(2, 16).double()).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=np.random.default_rng(0).normal(size=(32, 16)))
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    run(EngineSpec(), inputs, Recorder(), out_dir(tmp_path))
    loaded = torch.jit.load(str(tmp_path / "out" / "model.int8.torchscript.pt"))
    assert loaded(torch.randn(3, 16).double()).dtype == torch.float64


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.table = nn.Conv2d(3, 8, 3), nn.Linear(5, 8)
        self.head = nn.Linear(8, 3)

    def forward(self, image: Tensor, table: Tensor) -> tuple[Tensor, Tensor]:
        joined = F.relu(self.image(image)).mean([2, 3]) + self.table(table)
        return self.head(joined), joined


def test_several_inputs_and_outputs_go_all_the_way(tmp_path: Path) -> None:
    torch.manual_seed(0)
    torch.jit.script(TwoInputs()).save(str(tmp_path / "m.pt"))
    random = np.random.default_rng(0)
    np.savez(
        tmp_path / "c.npz",
        input_0=random.normal(size=(16, 3, 8, 8)).astype("f4"),
        input_1=random.normal(size=(16, 5)).astype("f4"),
    )
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    result = run(EngineSpec(), inputs, Recorder(), out_dir(tmp_path))
    loaded = torch.jit.load(str(tmp_path / "out" / "model.int8.torchscript.pt"))
    logits, joined = loaded(table=torch.randn(4, 5), image=torch.randn(4, 3, 8, 8))
    assert (logits.shape, joined.shape) == ((4, 3), (4, 8))
    assert {layer.precision for layer in result.layers} == {"int8"}


@pytest.mark.slow
def test_preflight_says_what_would_happen_and_estimates_the_size(
    digits_files: Inputs, tmp_path: Path
) -> None:
    spec = EngineSpec(config=PtqConfig(overrides={"fc2": "fp32"}))
    answer = preflight(spec, digits_files, Recorder())
    json.dumps(answer)
    assert answer["counts"] == {"int8": 3, "fp32": 1}
    assert answer["layers"][-1]["reason"] == "override 'fc2' keeps it fp32"
    assert answer["dataset"]["samples"] == 517
    assert answer["metric"] == "top1"
    assert answer["operators"]
    real = run(spec, digits_files, Recorder(), out_dir(tmp_path)).artifacts[0].size_bytes
    assert 0.5 < answer["estimated_size_bytes"] / real < 2


@pytest.mark.slow
def test_importing_the_pipeline_starts_no_threads() -> None:
    """A zygote forks after this import, and a fork keeps one thread only."""
    code = "import compress.pipeline, os; print(len(os.listdir('/proc/self/task')))"
    environment = {"OPENBLAS_NUM_THREADS": "1", "PATH": ""}
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment,
        cwd=Path(__file__).parents[2], check=True,
    )  # fmt: skip
    assert answer.stdout.strip() == "1"


@pytest.mark.slow
def test_resnet18_shrinks_three_and_a_half_times_and_keeps_its_batch_dynamic(
    tmp_path: Path,
) -> None:
    model = zoo.resnet18()
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(16, 3, 64, 64, generator=generator)
    torch.jit.script(model).save(str(tmp_path / "m.pt"))
    np.savez(tmp_path / "c.npz", input=images.numpy())
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    result = run(EngineSpec(threads=2), inputs, Recorder(), out_dir(tmp_path))
    [artifact] = result.artifacts
    assert artifact.compression_ratio >= 3.5
    assert artifact.fidelity is not None
    assert artifact.fidelity.sqnr_db > 30
    assert len(result.layers) == 21
    loaded = torch.jit.load(str(tmp_path / "out" / artifact.name))
    with torch.no_grad():
        for samples in (1, 5):
            answer, expected = loaded(images[:samples]), model(images[:samples])
            assert (answer - expected).square().sum() < 1e-3 * expected.square().sum()


@pytest.mark.slow
def test_x86_vnni_refuses_a_processor_whose_sums_overflow(
    digits_files: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "int8_saturates", lambda environment: True)
    with pytest.raises(DeviceUnavailable, match=r"AVX512-VNNI.*use backend 'x86'"):
        run(EngineSpec(backend="x86_vnni"), digits_files, Recorder(), out_dir(tmp_path))
    assert run(EngineSpec(), digits_files, Recorder(), tmp_path / "out").artifacts


@pytest.mark.slow
def test_x86_vnni_is_closer_to_float_and_says_so(
    digits_files: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # the rule is tested above; here the file is made whatever the processor
    monkeypatch.setattr(pipeline, "int8_saturates", lambda environment: False)
    results = {}
    for backend in ("x86", "x86_vnni"):
        folder = tmp_path / backend
        folder.mkdir()
        results[backend] = run(EngineSpec(backend=backend), digits_files, Recorder(), folder)
    ranges = {name: result.provenance["activation_range"] for name, result in results.items()}
    assert ranges == {"x86": "reduced", "x86_vnni": "full"}
    if "avx512_vnni" in results["x86"].environment.isa:
        sqnr_db = {name: result.artifacts[0].fidelity.sqnr_db for name, result in results.items()}
        assert sqnr_db["x86_vnni"] > sqnr_db["x86"]


class Hangs(nn.Module):
    """Takes another way for each rate, and a third layer where the data say so."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.extra = nn.Linear(4, 8), nn.Linear(8, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor, rate: int) -> Tensor:
        if rate == 16000:
            x = x * 2
        x = self.last(torch.relu(self.first(x)))
        if x.sum() > 0:
            x = self.extra(x)
        return x

    @torch.jit.export
    def describe(self) -> str:
        return "hangs"


def test_what_a_user_must_know_of_lifting_is_told_before_and_during_a_job(tmp_path: Path) -> None:
    torch.jit.script(Hangs().eval()).save(str(tmp_path / "m.pt"))
    data = np.random.default_rng(0).normal(size=(16, 4)).astype("f4")
    np.savez(tmp_path / "c.npz", input_0=data, input_1=np.full(16, 16000))
    files = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    before, during = Recorder(), Recorder()
    answer = preflight(EngineSpec(), files, before)
    assert answer["guards"] == ["rate == 16000"]
    assert [island["parameters"] for island in answer["islands"]] == [12]
    assert "values of its data" in answer["islands"][0]["reason"]
    assert answer["methods_dropped"] == ["describe"]
    assert answer["dynamic_dims"] == {"x": [0]}
    assert answer["parameters_lifted"] == 40 + 27
    assert answer["parameters_by_module"] == {"first": 40, "last": 27}
    assert answer["counts"] == {"int8": 2, "fp32": 1}
    json.dumps(answer)
    result = run(EngineSpec(), files, during, out_dir(tmp_path))
    assert result.lift["guards"] == answer["guards"]
    assert result.lift["islands"] == answer["islands"]
    for sink in (before, during):
        islands, guards, methods = sink.warnings
        assert islands.startswith("Stays float: 'island' (")
        assert "holds only where rate == 16000" in guards
        assert "'describe'" in methods


class Words(nn.Module):
    """Knows ids 0 to 9, and names a class for each word."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(10, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.table(ids).relu())


def words(folder: Path, **changes: int) -> Inputs:
    """Files of `Words`: sentences of six words, the last two padding; `bad` is an id of one."""
    random = np.random.default_rng(0)
    ids, label = random.integers(0, 10, (64, 6)), random.integers(0, 3, (64, 6))
    label[:, 4:] = -100
    torch.jit.trace(Words().eval(), torch.zeros(1, 6, dtype=torch.long)).save(folder / "words.pt")
    np.savez(folder / "test.npz", input=ids, label=label)
    ids[50, 2] = changes.get("bad", 0)
    np.savez(folder / "train.npz", input=ids)
    return Inputs(
        model=folder / "words.pt", calibration=folder / "train.npz", evaluation=folder / "test.npz"
    )


def test_padding_without_a_label_is_not_judged(tmp_path: Path) -> None:
    files = words(tmp_path)
    result = run(EngineSpec(), files, Recorder(), out_dir(tmp_path))
    assert files.evaluation is not None
    test = np.load(files.evaluation)
    with torch.no_grad():
        answers = torch.jit.load(str(files.model))(torch.from_numpy(test["input"])).argmax(2)
    hits = (answers.numpy() == test["label"])[:, :4]
    assert result.baseline.quality is not None
    assert result.baseline.quality.value == pytest.approx(hits.mean())


def test_an_id_that_the_model_does_not_know_is_the_datas_fault(tmp_path: Path) -> None:
    with pytest.raises(ModelFailed, match="an id that it does not know"):
        run(EngineSpec(), words(tmp_path, bad=77), Recorder(), out_dir(tmp_path))
