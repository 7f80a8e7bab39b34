"""Real OpenVINO files, unpacked and run as anybody would."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch

from compress.errors import ExportFailed
from compress.export import Plan, export
from tests.compress.export.plans import image_plan, images


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
