"""The search on a trained net that int8 breaks, each plan converted, written and run."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from compress.errors import ConstraintUnmet
from compress.export.torchscript import export_torchscript
from compress.lift import lift
from compress.measure.fidelity import FidelityMeter
from compress.mixed import planner
from compress.mixed.compose import Composer
from compress.mixed.planner import Bound, Figures, Found, find_plan
from compress.quantize import Quantized
from compress.result import Quality
from compress.spec import LayerPrecision, MixedConfig
from tests.compress import digits
from tests.compress.mixed.breakable import breakable

pytestmark = pytest.mark.slow

CULPRITS = {"wide", "narrow"}
ALL = ("int8", "fp16", "fp32")


class Setting:
    """The net, lifted, and its held-out digits."""

    def __init__(self, folder: Path) -> None:
        self.train, _, self.images, self.labels = digits.images()
        self.path = folder / "model.pt"
        torch.jit.trace(breakable(), self.images[:2]).save(str(self.path))
        self.original = torch.jit.load(str(self.path)).eval()
        self.folder = folder
        self.calibrations = 0
        example = [self.images[:3]]
        self.composer = Composer(
            lift(self.original, example).graph_module, example, self.calibration,
            MixedConfig(), backend="x86", islands={}, probes=[[self.images[:1]]],
        )  # fmt: skip

    def calibration(self) -> list[list[torch.Tensor]]:
        self.calibrations += 1
        return [[self.train[:200]]]

    def accuracy(self, model: Callable[..., torch.Tensor]) -> float:
        with torch.no_grad():
            return float((model(self.images).argmax(1) == self.labels).float().mean())

    def measure(self, made: Quantized) -> Figures:
        target = self.folder / "trial.pt"
        probes = [[self.images[:1]], [self.images[:3]]]
        export_torchscript(made.graph_module, self.path, target, probes, freeze=False)
        loaded = torch.jit.load(str(target)).eval()
        meter = FidelityMeter()
        with torch.no_grad():
            meter.add(self.original(self.images), loaded(self.images))
        before, after = self.accuracy(self.original), self.accuracy(loaded)
        count = len(self.images)
        return Figures(
            size_bytes=target.stat().st_size,
            fidelity=meter.report(),
            quality=Quality(metric="top1", value=after, samples=count, drop=before - after),
            baseline=Quality(metric="top1", value=before, samples=count),
            latency_ms=1.0,
        )

    def find(
        self, bound: Bound, candidates: tuple[LayerPrecision, ...] = ALL, **pinned: LayerPrecision
    ) -> Found:
        return find_plan(
            self.composer.float_model, bound, candidates, pinned, [self.images[:16]],
            build=self.composer.build, measure=self.measure, static=self.composer.is_static,
        )  # fmt: skip


@pytest.fixture
def setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Setting:
    # such small layers take as long as chance and neighbours will: let bytes alone count
    monkeypatch.setattr(planner, "_times", lambda graph_module, names, probes: {})
    return Setting(tmp_path)


def test_a_net_that_int8_breaks_keeps_its_accuracy_and_its_culprits_are_named(
    setting: Setting,
) -> None:
    broken = setting.measure(setting.composer.build(dict.fromkeys(setting.composer.names, "int8")))
    assert broken.quality is not None
    assert broken.quality.drop is not None
    assert broken.quality.drop > 0.5
    found = setting.find(Bound(max_accuracy_drop=0.01))
    figures = setting.measure(found.quantized)
    assert figures.quality is not None
    assert figures.quality.drop is not None
    assert figures.quality.drop <= 0.01
    assert figures.size_bytes < setting.path.stat().st_size / 2
    assert {name for name, precision in found.plan.items() if precision != "int8"} == CULPRITS
    table = [row for row in found.story["sensitivity"] if row["precision"] == "int8"]
    worst = sorted(table, key=lambda row: row["sqnr_db"])[:2]
    assert {row["name"] for row in worst} == CULPRITS
    assert sum(trial["chosen"] for trial in found.story["trials"]) == 1
    assert {layer.name: layer.precision for layer in found.quantized.layers} == found.plan
    errors = {layer.name: layer.sqnr_db or 0.0 for layer in found.quantized.layers}
    assert min(errors[name] for name in CULPRITS) > 60  # relu fused into them or not


def test_calibration_data_is_run_once_for_all_plans(setting: Setting) -> None:
    found = setting.find(Bound(max_accuracy_drop=0.01))
    assert len(found.story["trials"]) > 2
    assert setting.calibrations == 1


def test_a_bound_on_noise_holds(setting: Setting) -> None:
    found = setting.find(Bound(min_sqnr_db=45.0))
    assert setting.measure(found.quantized).fidelity.sqnr_db >= 45.0
    chosen = next(t for t in found.story["trials"] if t["chosen"])
    cheaper = [t for t in found.story["trials"] if t["steps"] < chosen["steps"]]
    assert not any(trial["keeps_bound"] for trial in cheaper)


def test_within_a_size_the_most_exact_plan_is_taken(setting: Setting) -> None:
    whole = setting.path.stat().st_size
    found = setting.find(Bound(target_size_bytes=whole * 6 // 10))
    figures = setting.measure(found.quantized)
    assert figures.size_bytes <= whole * 6 // 10
    assert figures.fidelity.sqnr_db > 40
    larger = [t for t in found.story["trials"] if t["sqnr_db"] > figures.fidelity.sqnr_db]
    assert all(not trial["keeps_bound"] for trial in larger)


def test_a_bound_that_nothing_keeps_comes_back_with_the_best_found(setting: Setting) -> None:
    with pytest.raises(ConstraintUnmet, match="No plan of these candidates keeps") as caught:
        setting.find(Bound(max_accuracy_drop=0.0), ("int8",), last="int8")
    assert caught.value.details is not None
    assert caught.value.details["bound"] == {"max_accuracy_drop": 0.0}
    assert caught.value.details["best"]["quality"]["drop"] > 0.5
    with pytest.raises(ConstraintUnmet, match="target_size_bytes 1000;"):
        setting.find(Bound(target_size_bytes=1000))


def test_pinned_layers_are_not_searched(setting: Setting) -> None:
    found = setting.find(Bound(max_accuracy_drop=0.01), last="fp32")
    assert found.plan["last"] == "fp32"
    assert all(row["name"] != "last" for row in found.story["sensitivity"])


def test_layers_are_timed_by_what_they_take(tmp_path: Path) -> None:
    model = Setting(tmp_path).composer.float_model
    sleepy = model.get_submodule("last")
    handle = sleepy.register_forward_pre_hook(lambda module, inputs: time.sleep(0.02))
    try:
        times = planner._times(model, ["wide", "last"], [digits.images()[2][:16]])
    finally:
        handle.remove()
    assert times.keys() == {"wide", "last"}
    assert times["last"] > 20_000
    assert times["wide"] < times["last"]
