"""What comes of errors that nobody foresaw, in any library that writes files."""

from __future__ import annotations

from pathlib import Path

import pytest

from compress import export as package
from compress.errors import ExportFailed, NothingToCompress, OutOfMemory
from compress.export import Plan, Written
from compress.pipeline import run
from compress.result import Inputs
from compress.spec import EngineSpec
from tests.compress.sinks import Recorder, out_dir


@pytest.fixture
def fail_onnx(monkeypatch: pytest.MonkeyPatch) -> list[Exception]:
    """The error that writing ONNX raises."""
    raised: list[Exception] = []

    def fail(plan: Plan, target: Path) -> Written:
        raise raised[0]

    monkeypatch.setitem(package._EXPORTERS, "onnx", fail)
    return raised


@pytest.mark.slow
def test_an_error_of_a_library_keeps_no_other_format(
    digits_files: Inputs, tmp_path: Path, fail_onnx: list[Exception]
) -> None:
    fail_onnx.append(KeyError("node 'mul_3'\nis not there"))
    sink = Recorder()
    spec = EngineSpec(formats=("onnx", "torchscript"), calibration_samples=32)
    result = run(spec, digits_files, sink, out_dir(tmp_path))
    assert [artifact.format for artifact in result.artifacts] == ["torchscript"]
    (undelivered,) = result.undelivered
    assert (undelivered.format, undelivered.code) == ("onnx", "export_failed")
    assert "KeyError" in undelivered.reason
    assert "mul_3" in undelivered.reason
    with pytest.raises(ExportFailed, match="format 'onnx' failed within a library"):
        run(EngineSpec(formats=("onnx",)), digits_files, sink, out_dir(tmp_path / "other"))


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), OutOfMemory),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), OutOfMemory),
        (_caused(ExportFailed("No."), RuntimeError("bad_alloc: out of memory")), OutOfMemory),
        (NothingToCompress("Nothing."), NothingToCompress),
    ],
    ids=["python", "torch", "behind an error of ours", "another error of ours"],
)
def test_lack_of_memory_and_other_errors_end_the_job(
    digits_files: Inputs,
    tmp_path: Path,
    fail_onnx: list[Exception],
    error: Exception,
    expected: type[Exception],
) -> None:
    fail_onnx.append(error)
    spec = EngineSpec(formats=("onnx", "torchscript"), calibration_samples=32)
    with pytest.raises(expected):
        run(spec, digits_files, Recorder(), out_dir(tmp_path))
