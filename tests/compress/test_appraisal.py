"""What files are measured by, what is recommended, and what is not."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compress import appraisal
from compress.appraisal import Finished, appraise, recommend
from compress.benchmark import Contender, Runnable, batch_of
from compress.errors import ExportFailed
from compress.intake import open_intake
from compress.measure.memory import MemoryProbe
from compress.progress import Progress
from compress.result import ArtifactReport, Baseline, Fidelity, Inputs, Quality, Ratio
from compress.spec import ConvertConfig, EngineSpec
from tests.compress.sinks import Recorder


def report(**fields: Any) -> ArtifactReport:
    kept = {"name": "a", "format": "torchscript", "precision": "int8", "size_bytes": 10,
            "sha256": "", "compression_ratio": 4.0, "verdict": "faster",
            "speedup": Ratio(value=2.0, ci95=(1.9, 2.1)),
            "quality": Quality(metric="top1", value=0.9, samples=9, drop=0.005)}  # fmt: skip
    return ArtifactReport(**(kept | fields))


def test_recommended_is_fastest_within_budget_and_never_shown_slower() -> None:
    baseline = Baseline(
        size_bytes=40, parameters=1, quality=Quality(metric="top1", value=0.905, samples=9)
    )
    faster = report(name="b", speedup=Ratio(value=3.0, ci95=(2.9, 3.1)))
    wrong = report(name="c", speedup=Ratio(value=9.0, ci95=(8.0, 9.9)),
                   quality=Quality(metric="top1", value=0.8, samples=9, drop=0.105))  # fmt: skip
    slower = report(name="d", verdict="not_faster", speedup=Ratio(value=0.8, ci95=(0.7, 0.9)))
    even = report(name="e", verdict="not_faster", speedup=Ratio(value=1.0, ci95=(0.9, 1.1)))
    assert recommend([report(), faster, wrong, slower], baseline, 0.01) == "b"
    assert recommend([slower], baseline, 0.01) is None
    assert recommend([wrong], baseline, 0.01) is None
    assert recommend([even], baseline, 0.01) == "e"
    bare = report(quality=None, fidelity=Fidelity(sqnr_db=19.0, cosine=0.99))
    assert recommend([bare], baseline, 0.01) is None
    assert recommend([replace(bare, fidelity=Fidelity(sqnr_db=21.0, cosine=1.0))], baseline, 0.01)


class Shifted(nn.Module):
    """Classifies 8 numbers; `shift` moves one class, `rows` is the only batch size it takes."""

    def __init__(self, shift: float = 0.0, rows: int = 0) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(8, 5)
        with torch.no_grad():
            self.linear.bias[0] += shift
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.reshape(self.rows, 8) if self.rows else x)


def saved(folder: Path, name: str, **settings: Any) -> Path:
    path = folder / name
    torch.jit.script(Shifted(**settings).eval()).save(str(path))
    return path


@pytest.fixture
def files(tmp_path: Path) -> Inputs:
    generator = np.random.default_rng(0)
    np.savez(
        tmp_path / "e.npz",
        input=generator.standard_normal((50, 8), np.float32),
        label=generator.integers(0, 5, 50),
    )
    return Inputs(model=saved(tmp_path, "original.pt"), evaluation=tmp_path / "e.npz")


def look(
    files: Inputs, tmp_path: Path, artifacts: list[Finished], **settings: Any
) -> tuple[Baseline, list[ArtifactReport], Recorder]:
    sink = Recorder()
    spec = EngineSpec(method="convert", config=ConvertConfig(), **settings)
    progress = Progress(sink, "converts")
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        intake = open_intake(spec, files, Path(scratch))
        baseline, reports, _ = appraise(intake, spec, files.model, artifacts, progress)
    return baseline, reports, sink


def test_all_files_are_judged_on_the_same_samples_and_measured_from_disk(
    files: Inputs, tmp_path: Path
) -> None:
    same = Finished(saved(tmp_path, "same.pt"), "torchscript", "fp32")
    moved = Finished(saved(tmp_path, "moved.pt", shift=1.5), "torchscript", "int8")
    baseline, reports, sink = look(files, tmp_path, [same, moved])
    data = np.load(tmp_path / "e.npz")
    inputs, label = torch.from_numpy(data["input"]), torch.from_numpy(data["label"])
    before, after = (net.eval()(inputs).detach() for net in (Shifted(), Shifted(shift=1.5)))
    accuracy = [float((answers.argmax(1) == label).double().mean()) for answers in (before, after)]
    assert baseline.quality is not None
    assert (baseline.quality.value, baseline.quality.samples) == (pytest.approx(accuracy[0]), 50)
    assert [report.name for report in reports] == ["same.pt", "moved.pt"]
    assert [report.precision for report in reports] == ["fp32", "int8"]
    assert reports[0].quality is not None
    assert reports[0].quality.drop == 0
    assert reports[1].quality is not None
    assert reports[1].quality.value == pytest.approx(accuracy[1])
    assert reports[1].quality.drop == pytest.approx(accuracy[0] - accuracy[1])
    noise = (after - before).double().square().sum() / before.double().square().sum()
    assert reports[1].fidelity is not None
    assert reports[1].fidelity.sqnr_db == pytest.approx(float(-10 * noise.log10()), abs=0.01)
    agreement = float((before.argmax(1) == after.argmax(1)).double().mean())
    assert reports[1].fidelity.top1_agreement == pytest.approx(agreement)
    for report in (baseline, *reports):
        assert report.latency_ms is not None
        assert [each.batch_size for each in report.throughput] == [1, 8, 32]
        assert report.throughput[0].samples_per_s == pytest.approx(1e3 / report.latency_ms.p50)
        assert report.throughput_per_s == report.throughput[0].samples_per_s
        assert report.peak_memory_bytes == 2**20
    assert reports[0].sha256 == hashlib.sha256(same.path.read_bytes()).hexdigest()
    assert sink.stages == ["evaluate", "benchmark"]
    assert sink.fractions == sorted(sink.fractions)
    assert sink.warnings == []


def test_the_original_answers_each_batch_once_for_all_files(
    files: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: dict[str, list[int]] = {}
    opened = Contender.open

    def counting(self: Contender) -> Runnable:
        run = opened(self)

        def counted(x: Tensor) -> Any:
            sizes.setdefault(self.path.name, []).append(x.shape[0])
            return run(x)

        return counted

    monkeypatch.setattr(Contender, "open", counting)
    names = ["a.pt", "b.pt", "c.pt"]
    look(files, tmp_path, [Finished(saved(tmp_path, n), "torchscript", "fp32") for n in names],
         calibration_batch_size=20)  # fmt: skip
    for name in ("original.pt", *names):
        assert sizes[name][:4] == [20, 20, 10, 1], name


def test_a_file_that_does_not_take_a_batch_is_named(files: Inputs, tmp_path: Path) -> None:
    stiff = Finished(saved(tmp_path, "stiff.pt", rows=32), "torchscript", "fp32")
    with pytest.raises(ExportFailed, match=r"'stiff\.pt' does not run on samples 32 to 49"):
        look(files, tmp_path, [stiff])


def test_a_file_that_does_not_take_a_batch_does_not_keep_the_others(
    files: Inputs, tmp_path: Path
) -> None:
    stiff = Finished(saved(tmp_path, "stiff.pt", rows=32), "torchscript", "fp32")
    same = Finished(saved(tmp_path, "same.pt"), "torchscript", "fp32")
    sink = Recorder()
    spec = EngineSpec(method="convert", config=ConvertConfig())
    with tempfile.TemporaryDirectory(dir=tmp_path) as scratch:
        intake = open_intake(spec, files, Path(scratch))
        baseline, reports, undelivered = appraise(
            intake, spec, files.model, [stiff, same], Progress(sink, "converts")
        )
    assert [each.name for each in reports] == ["same.pt"]
    assert reports[0].quality is not None
    assert reports[0].quality.samples == 50
    assert baseline.latency_ms is not None
    [left_out] = undelivered
    assert (left_out.format, left_out.code) == ("torchscript", "export_failed")
    assert "'stiff.pt' does not run on samples 32 to 49" in left_out.reason
    assert any("stiff.pt" in warning for warning in sink.warnings)
    assert not stiff.path.exists()


def test_batch_sizes_that_a_file_refuses_are_left_out_for_all(
    files: Inputs, tmp_path: Path
) -> None:
    """Judged one by one, as the original takes no more; then nothing larger can be timed."""
    single = Inputs(model=saved(tmp_path, "single.pt", rows=1), evaluation=files.evaluation)
    artifact = Finished(saved(tmp_path, "same.pt"), "torchscript", "fp32")
    baseline, [report], _ = look(single, tmp_path, [artifact])
    for measured in (baseline.throughput, report.throughput):
        assert [each.batch_size for each in measured] == [1]


@pytest.mark.slow
def test_memory_is_that_of_the_real_file_where_nothing_stands_in(
    files: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(appraisal, "MemoryProbe", MemoryProbe)
    broad = tmp_path / "broad.pt"
    net = nn.Sequential(nn.Linear(8, 2_000_000, bias=False), nn.Linear(2_000_000, 5, bias=False))
    torch.jit.trace(net.eval(), torch.zeros(2, 8)).save(str(broad))
    baseline, [report], sink = look(files, tmp_path, [Finished(broad, "torchscript", "fp32")])
    assert baseline.peak_memory_bytes is not None
    assert report.peak_memory_bytes is not None
    weights = 4 * 13 * 2_000_000
    assert 0.95 * weights < report.peak_memory_bytes < 1.5 * weights
    assert baseline.peak_memory_bytes < 4 * 2**20
    assert sink.warnings == []


def test_larger_batches_repeat_samples_and_grow_only_what_grows(
    files: Inputs, tmp_path: Path
) -> None:
    spec = EngineSpec(method="convert", config=ConvertConfig())
    given = open_intake(spec, files, tmp_path)
    [batch] = batch_of(given, 120) or []
    data = torch.from_numpy(np.load(tmp_path / "e.npz")["input"])
    assert torch.equal(batch, torch.cat([data, data, data[:20]]))
    fixed, single, several = torch.zeros(4), torch.zeros(1, 8), torch.ones(3, 8)
    made_up = replace(given, evaluation=None, made_up=[[(single, fixed), 7], [(several, fixed), 7]])
    grown, number = batch_of(made_up, 8) or []
    assert [tuple(tensor.shape) for tensor in grown] == [(8, 8), (4,)]
    assert number == 7
    assert batch_of(replace(made_up, made_up=made_up.made_up[:1]), 8) is None
