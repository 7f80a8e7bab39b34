"""Exported programs, loaded in a process that has never heard of Tersor."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from compress.export import Plan, export
from tests.compress.export.plans import image_plan, images

pytestmark = pytest.mark.slow

_SCRIPT = """
import sys
sys.path = [each for each in sys.path if each]
import torch
program = torch.export.load(sys.argv[1])
model = program.module()
for given in torch.load(sys.argv[2]):
    torch.save(model(given), sys.argv[3] + str(len(given)))
assert not any(name.partition(".")[0] in ("compress", "tersor") for name in sys.modules)
assert not any(name.startswith("torch.ao.quantization.fx._decomposed") for name in sys.modules)
"""


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return image_plan(tmp_path_factory.mktemp("plan"), "int8")


@pytest.fixture(scope="module")
def file(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export("pt2", plan, tmp_path_factory.mktemp("files")).path


def test_it_runs_in_a_fresh_process_at_other_batch_sizes(
    plan: Plan, file: Path, tmp_path: Path
) -> None:
    given = [images(batch, seed=9) for batch in (1, 2, 7)]
    torch.save(given, tmp_path / "given.pt")
    arguments = [str(file), str(tmp_path / "given.pt"), str(tmp_path / "answer")]
    subprocess.run(
        [sys.executable, "-W", "ignore", "-c", _SCRIPT, *arguments],
        check=True, cwd=tmp_path, env={"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    for data in given:
        found = torch.load(tmp_path / f"answer{len(data)}")
        with torch.no_grad():
            wanted = plan.graph_module(data)
        assert found.shape == wanted.shape
        assert (found - wanted).square().sum() < 10**-2 * wanted.square().sum()


def test_weights_are_stored_as_int8(plan: Plan, file: Path) -> None:
    program = torch.export.load(file)
    large = [value for value in program.state_dict.values() if value.numel() > 100]
    assert large
    assert {value.dtype for value in large} == {torch.int8}
    wide = plan.graph_module.get_submodule("wide").weight().int_repr()
    assert any(torch.equal(value, wide) for value in large if value.shape == wide.shape)


def test_nothing_of_this_machine_is_in_it(file: Path) -> None:
    with zipfile.ZipFile(file) as archive:
        for name in archive.namelist():
            assert b"site-packages" not in archive.read(name), name


def test_half_weights_are_stored_in_half(tmp_path: Path) -> None:
    file = export("pt2", image_plan(tmp_path, "fp16"), tmp_path).path
    program = torch.export.load(file)
    large = [value for value in program.state_dict.values() if value.numel() > 64]
    assert {value.dtype for value in large} == {torch.float16}
    assert program.module()(images(4)).dtype == torch.float32
