"""Real OpenVINO files, unpacked and run as anybody would."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from torch import nn

from compress.errors import ExportFailed
from compress.export import Plan, export
from compress.pipeline import run
from compress.result import Inputs
from compress.spec import EngineSpec, PtqConfig
from tests.compress.export.plans import image_plan, images
from tests.compress.sinks import Recorder
from tests.compress.zoo.registry import ENTRIES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return image_plan(tmp_path_factory.mktemp("plan"), "int8")


@pytest.fixture(scope="module")
def folder(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    file = export("openvino", plan, folder).path
    assert file.name == "model.int8.openvino.zip"
    assert list(folder.iterdir()) == [file]
    with zipfile.ZipFile(file) as archive:
        assert sorted(archive.namelist()) == ["model.bin", "model.xml"]
        assert {each.compress_type for each in archive.infolist()} == {zipfile.ZIP_STORED}
        archive.extractall(folder)
    return folder


def test_unpacked_it_runs_at_other_batch_sizes(plan: Plan, folder: Path) -> None:
    compiled = openvino.Core().compile_model(folder / "model.xml", "CPU")
    assert compiled.input("image").partial_shape[0].is_dynamic
    for batch in (1, 2, 7):
        data = images(batch, seed=9)
        found = compiled({"image": data.numpy()})["output"]
        with torch.no_grad():
            wanted = plan.graph_module(data).numpy()
        assert found.shape == wanted.shape
        assert np.square(found - wanted).sum() < 10**-2 * np.square(wanted).sum()


def test_weights_are_stored_as_int8(plan: Plan, folder: Path) -> None:
    model = openvino.Core().read_model(folder / "model.xml")
    constants = [op for op in model.get_ops() if op.get_type_name() == "Constant"]
    shapes = {tuple(op.shape): op.get_element_type() for op in constants if np.prod(op.shape) > 100}
    assert set(map(str, shapes.values())) == {"<Type: 'int8_t'>"}
    assert (64, 10) in shapes or (10, 64) in shapes
    weights = sum(plan.graph_module.get_submodule(n).weight().numel() for n in ("first", "wide"))
    assert (folder / "model.bin").stat().st_size < 2 * weights


def test_the_file_says_where_it_came_from(folder: Path) -> None:
    model = openvino.Core().read_model(folder / "model.xml")
    assert model.get_rt_info(["tersor", "precision"]).astype(str) == "int8"


def test_without_the_package_the_extra_is_named(
    plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ExportFailed, match=r"tersor\[server,openvino\]"):
        export("openvino", plan, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_what_only_float_operators_read_is_not_rounded_and_a_joined_token_spoils_nothing(
    tmp_path: Path,
) -> None:
    """A convolution's answer, rounded and joined with a float token, came out wrong."""
    net = ENTRIES["vit"].model()
    generator = np.random.default_rng(0)
    np.savez(tmp_path / "c.npz", input=generator.standard_normal((32, 3, 32, 32), np.float32))
    torch.jit.trace(net, torch.zeros(2, 3, 32, 32)).save(str(tmp_path / "m.pt"))
    spec = EngineSpec(method="ptq", config=PtqConfig(), formats=("torchscript", "openvino"))
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    result = run(spec, inputs, Recorder(), tmp_path)
    torchscript, ours = result.artifacts
    assert torchscript.fidelity is not None
    assert ours.fidelity is not None
    assert ours.fidelity.sqnr_db > torchscript.fidelity.sqnr_db - 1.5


def test_a_relu_that_saturation_stands_for_holds_where_nothing_is_rounded(tmp_path: Path) -> None:
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Flatten(1), nn.LayerNorm(8 * 36))
    generator = np.random.default_rng(0)
    data = 20 * generator.standard_normal((32, 3, 8, 8), np.float32)
    np.savez(tmp_path / "c.npz", input=data)
    torch.jit.script(net.eval()).save(str(tmp_path / "m.pt"))
    spec = EngineSpec(method="ptq", config=PtqConfig(), formats=("openvino",))
    inputs = Inputs(model=tmp_path / "m.pt", calibration=tmp_path / "c.npz")
    [artifact] = run(spec, inputs, Recorder(), tmp_path).artifacts
    assert artifact.fidelity is not None
    assert artifact.fidelity.sqnr_db > 25
