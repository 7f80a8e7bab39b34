"""What is pruned goes on as any lifted graph does: into files, and into int8."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, fx

from compress.export import Plan, export
from compress.lift import lift
from compress.prune import prune
from compress.quantize import quantize_static, to_float32
from compress.spec import PtqConfig
from tests.compress import zoo
from tests.compress.export.plans import Net, images


@pytest.fixture
def original(tmp_path: Path) -> Path:
    path = tmp_path / "original.pt"
    torch.jit.trace(zoo.settle(Net().eval()), images(2)).save(str(path))
    return path


@pytest.fixture
def pruned(original: Path) -> fx.GraphModule:
    example = [images(2)]
    whole = lift(torch.jit.load(str(original)).eval(), example).graph_module
    return prune(whole, example, 0.5, batches=[[images(4, seed=1)]]).graph_module


def plan(graph_module: fx.GraphModule, original: Path) -> Plan:
    return Plan(
        graph_module=to_float32(graph_module).graph_module,
        original=original,
        probes=[[images(1)], [images(3, seed=1)]],
        precision="fp32",
        dtype=torch.float32,
        dynamic_dims={"image": [0, 2, 3]},
        islands={},
        guards=[],
        freeze=False,
    )


def given() -> Tensor:
    return images(5, 24, seed=3)


def test_torchscript_of_it_is_smaller_and_answers_the_same(
    pruned: fx.GraphModule, original: Path, tmp_path: Path
) -> None:
    written = export("torchscript", plan(pruned, original), tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.load(str(written.path))(given()), pruned(given()))
    weights = sum(each.numel() for each in torch.jit.load(str(written.path)).parameters())
    assert weights < 0.4 * sum(each.numel() for each in torch.jit.load(str(original)).parameters())


@pytest.mark.slow
def test_onnx_of_it_answers_the_same(
    pruned: fx.GraphModule, original: Path, tmp_path: Path
) -> None:
    written = export("onnx", plan(pruned, original), tmp_path)
    (found,) = onnxruntime.InferenceSession(str(written.path)).run(None, {"image": given().numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.tensor(found), pruned(given()), rtol=1e-4, atol=1e-5)


def test_int8_of_it_stays_close(pruned: fx.GraphModule) -> None:
    calibration = [[images(16, seed=2)]]
    quantized = quantize_static(
        pruned, [images(2)], calibration, PtqConfig(observer="minmax"), full_range=False
    )
    with torch.no_grad():
        exact, rounded = pruned(given()), quantized.graph_module(given())
    noise = (exact - rounded).square().sum() / exact.square().sum()
    assert 10 * torch.log10(1 / noise) > 15
    assert {layer.precision for layer in quantized.layers} == {"int8"}
