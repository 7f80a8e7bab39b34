from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from compress.__main__ import _declared, main
from compress.errors import InvalidSpec
from compress.spec import TensorSpec
from tests.compress import zoo


@pytest.fixture
def files(tmp_path: Path) -> tuple[str, str]:
    torch.jit.script(zoo.small_cnn()).save(str(tmp_path / "m.pt"))
    data = np.random.default_rng(0).normal(size=(16, 1, 8, 8)).astype("f4")
    np.savez(tmp_path / "c.npz", input=data)
    return str(tmp_path / "m.pt"), str(tmp_path / "c.npz")


@pytest.mark.slow
def test_ptq_prints_a_table_and_writes_the_file(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "out"
    assert main(["ptq", *files, "-o", str(out), "--override", "conv1=fp32"]) == 0
    text = capsys.readouterr().out
    assert "smaller" in text
    assert "conv1 (Conv2d): override 'conv1' keeps it fp32" in text
    assert (out / "model.int8.torchscript.pt").exists()


@pytest.mark.slow
def test_json_is_the_manifest(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(["ptq", *files, "-o", str(out), "--json", "--observer", "minmax"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((out / "manifest.json").read_text())


def test_convert_takes_declared_shapes(files: tuple[str, str], tmp_path: Path) -> None:
    arguments = ["convert", files[0], "--input", "image:float32:batch,1,8,8"]
    assert main([*arguments, "--precision", "fp16", "-o", str(tmp_path)]) == 0
    assert (tmp_path / "model.fp16.torchscript.pt").exists()


def test_a_declared_input_may_be_a_number() -> None:
    assert _declared("rate:int64:=16000") == TensorSpec(name="rate", dtype="int64", value=16000)
    assert _declared("on:bool:=true").value is True
    assert _declared("mask:float32:batch,4=0.5").shape == ("batch", 4)
    for text in ("x", "x:float32", "x:float99:2", "x:int64:=many", "x:float32:=NaN", 'x:int8:="1"'):
        with pytest.raises(InvalidSpec, match="is not NAME"):
            _declared(text)


def test_preflight_prints_json(files: tuple[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["preflight", *files]) == 0
    assert json.loads(capsys.readouterr().out)["counts"] == {"int8": 4}


def test_a_fault_is_one_line_with_its_code(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    assert main(["ptq", *files, "-o", out, "--override", "nothing=fp32"]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("invalid_spec: Override 'nothing'")
    assert main(["ptq", files[0], "absent.npz", "-o", out]) == 2
    assert main(["ptq", *files, "-o", out, "--override", "conv1:fp64"]) == 2


@pytest.mark.slow
def test_distill_takes_a_student_and_training_data(
    files: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, student = tmp_path / "out", tmp_path / "s.pt"
    small = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    torch.jit.script(small).save(str(student))
    arguments = ["distill", *files, "--student", str(student), "--epochs", "2", "--batch-size", "4"]
    kept = tmp_path / "kept"
    assert main([*arguments, "-o", str(out), "--checkpoints", str(kept), "--json"]) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)["training"]["epochs"] == 2
    assert "epoch 2/2, loss" in told.err
    assert (out / "model.fp32.torchscript.pt").exists()
    assert (kept / "distill.checkpoint").exists()
    assert main(["distill", files[0], files[1], "-o", str(out)]) == 2
    assert "Give student_model_id or prune" in capsys.readouterr().err
    assert main([*arguments[:3], "--student", "absent.pt", "-o", str(out)]) == 2
