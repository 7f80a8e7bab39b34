"""Jobs for backend `cuda`: their way with the processor in the GPU's place, and on a real one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from compress import devices
from compress.devices import CPU
from compress.errors import DeviceUnavailable, InvalidSpec
from compress.pipeline import preflight, run
from compress.quantize.gpu_integers import _integers
from compress.result import Inputs
from compress.spec import ConvertConfig, DistillConfig, EngineSpec, PtqConfig
from tests.compress import digits
from tests.compress.sinks import Recorder
from tests.compress.train import runs
from tests.compress.zoo.entry import export
from tests.compress.zoo.registry import ENTRIES

HALF = EngineSpec(method="convert", config=ConvertConfig(precision="fp16"), backend="cuda")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


@pytest.fixture
def training_files(digits_files: Inputs, tmp_path: Path) -> Inputs:
    pixels, labels, _, _ = digits.images()
    np.savez(tmp_path / "t.npz", input=pixels.numpy(), label=labels.numpy())
    torch.jit.trace(runs.net().eval(), pixels[:2]).save(str(tmp_path / "s.pt"))
    return replace(
        digits_files, calibration=None, training=tmp_path / "t.npz", student=tmp_path / "s.pt"
    )


@pytest.fixture
def processor_stands_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "find_device", lambda asked: CPU)


def check_files(spec: EngineSpec, inputs: Inputs, out: Path) -> None:
    """Run a job, and hold its figures to what a user finds who loads the file."""
    result = run(spec, inputs, Recorder(), out)
    (artifact,) = result.artifacts
    assert artifact.precision in ("fp16", "bf16")
    loaded = torch.jit.load(str(out / artifact.name), map_location=devices.device_of("cuda"))
    assert {each.dtype.itemsize for each in loaded.parameters()} == {2}
    _, _, held, labels = digits.images()
    with torch.no_grad():
        answers = loaded(held.to(devices.device_of("cuda")))
    assert answers.dtype == torch.float32
    top1 = float((answers.cpu().argmax(1) == labels).float().mean())
    assert artifact.quality is not None
    assert artifact.quality.value == pytest.approx(top1, abs=0.004)
    assert artifact.compression_ratio > 1.3
    assert artifact.speedup is not None
    assert artifact.latency_ms.p50 > 0


@pytest.mark.slow
@pytest.mark.usefixtures("processor_stands_in")
def test_a_converted_file_holds_and_computes_16_bits(digits_files: Inputs, tmp_path: Path) -> None:
    check_files(HALF, digits_files, tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("processor_stands_in")
def test_a_quantized_file_holds_int8_where_asked(digits_files: Inputs, tmp_path: Path) -> None:
    check_integers(digits_files, tmp_path)


def check_integers(inputs: Inputs, out: Path) -> None:
    """Have the layers that can be made int8 so, and hold the figures to the file."""
    told = run(
        EngineSpec(method="convert", config=ConvertConfig(), backend="cuda"), inputs, Recorder(),
        out,
    )  # fmt: skip
    assert told.layers
    names = [layer.name for layer in told.layers if layer.type == "Linear"]
    config = PtqConfig(mode="dynamic", overrides={names[0]: "int8"})
    result = run(EngineSpec(config=config, backend="cuda"), inputs, Recorder(), out)
    assert result.layers
    layer = next(layer for layer in result.layers if layer.name == names[0])
    assert layer.precision == "int8"
    (artifact,) = result.artifacts
    assert artifact.precision == "int8"
    loaded = torch.jit.load(str(out / artifact.name), map_location=devices.device_of("cuda"))
    held = {name: value.dtype for name, value in loaded.named_buffers()}
    assert held[f"{names[0]}.integers"] == torch.int8
    _, _, held_back, labels = digits.images()
    with torch.no_grad():
        answers = loaded(held_back.to(devices.device_of("cuda"))).cpu()
    top1 = float((answers.argmax(1) == labels).float().mean())
    assert artifact.quality is not None
    assert artifact.quality.value == pytest.approx(top1, abs=0.004)


@pytest.mark.slow
@pytest.mark.usefixtures("processor_stands_in")
def test_a_distilled_file_holds_and_computes_16_bits(
    training_files: Inputs, tmp_path: Path
) -> None:
    config = DistillConfig(student_model_id="s", epochs=2, amp="off")
    check_files(
        EngineSpec(method="distill", config=config, backend="cuda"), training_files, tmp_path
    )


def test_jobs_that_contradict_themselves_are_refused(digits_files: Inputs, tmp_path: Path) -> None:
    with pytest.raises(InvalidSpec, match=r"set config\.mode to 'dynamic'"):
        run(EngineSpec(config=PtqConfig(), backend="cuda"), digits_files, Recorder(), tmp_path)
    with pytest.raises(InvalidSpec, match="there is format 'torchscript'"):
        run(replace(HALF, formats=("onnx",)), digits_files, Recorder(), tmp_path)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_a_job_is_refused_and_its_preflight_answers(
    digits_files: Inputs, tmp_path: Path
) -> None:
    with pytest.raises(DeviceUnavailable, match="No CUDA device"):
        run(HALF, digits_files, Recorder(), tmp_path)
    told = preflight(HALF, digits_files, Recorder())
    assert told["counts"] == {"fp16": len(told["layers"])}
    spec = EngineSpec(config=PtqConfig(mode="dynamic"), backend="cuda")
    told = preflight(spec, digits_files, Recorder())  # what could be int8: nobody can time it here
    linear = sum(layer["type"] == "Linear" for layer in told["layers"])
    assert 0 < told["counts"]["int8"] <= linear


@pytest.mark.gpu
@needs_cuda
def test_files_are_made_and_measured_on_a_gpu(digits_files: Inputs, tmp_path: Path) -> None:
    check_files(HALF, digits_files, tmp_path)
    result = run(HALF, digits_files, Recorder(), tmp_path)
    assert result.environment.device.startswith("cuda: ")
    assert result.artifacts[0].peak_memory_bytes


@pytest.mark.gpu
@needs_cuda
def test_a_student_is_trained_and_delivered_on_a_gpu(
    training_files: Inputs, tmp_path: Path
) -> None:
    config = DistillConfig(student_model_id="s", epochs=3)
    spec = EngineSpec(method="distill", config=config, backend="cuda", device="cuda")
    check_files(spec, training_files, tmp_path)


@pytest.mark.gpu
@needs_cuda
def test_a_student_for_processors_is_trained_on_a_gpu(
    training_files: Inputs, tmp_path: Path
) -> None:
    config = DistillConfig(student_model_id="s", epochs=3)
    spec = EngineSpec(method="distill", config=config, device="cuda")
    result = run(spec, training_files, Recorder(), tmp_path)
    assert result.training is not None
    assert result.environment.device == "cpu"
    assert torch.jit.load(str(tmp_path / result.artifacts[0].name))(torch.zeros(1, 1, 8, 8)).numel()


@pytest.mark.gpu
@needs_cuda
def test_integers_are_made_and_measured_on_a_gpu(digits_files: Inputs, tmp_path: Path) -> None:
    check_integers(digits_files, tmp_path)


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("rows", [1, 17, 200])
def test_a_gpu_computes_integers_as_the_processor_does(rows: int) -> None:
    torch.manual_seed(0)
    layer = _integers(torch.nn.Linear(64, 128))
    x = torch.randn(rows, 64)
    there = layer.to("cuda")(x.to("cuda")).cpu()
    torch.testing.assert_close(there, layer.to("cpu")(x), rtol=1e-2, atol=1e-2)


@pytest.mark.gpu
@needs_cuda
def test_a_pruned_transformer_is_delivered_for_a_gpu(tmp_path: Path) -> None:
    entry = ENTRIES["hf_gpt2_eager"]  # cut weights lie otherwise in the file than in memory
    (tmp_path / "m.pt").write_bytes(export(entry.model(), entry.example(), "trace"))
    [ids] = entry.inputs(False, 16, entry.extent)
    np.savez(tmp_path / "t.npz", input=ids.numpy())
    out = tmp_path / "out"
    out.mkdir()
    spec = EngineSpec(
        method="distill", config=DistillConfig(prune=0.5, steps=3, batch_size=8), backend="cuda",
        device="cuda",
    )  # fmt: skip
    inputs = Inputs(
        model=tmp_path / "m.pt", training=tmp_path / "t.npz", evaluation=tmp_path / "t.npz"
    )
    (artifact,) = run(spec, inputs, Recorder(), out).artifacts
    assert artifact.compression_ratio > 2
