"""Graphs for qnnpack: computed by its own kernels, which torch has on x86, too."""

from __future__ import annotations

import io

import pytest
import torch
from torch import Tensor, fx, nn

from compress.export.flatten import flatten
from compress.lift import lift
from compress.quantize import Quantized, quantize_static
from compress.quantize.fx_backend import engine_for
from compress.spec import PtqConfig
from tests.compress.zoo.entry import export, load
from tests.compress.zoo.registry import ENTRIES


def sqnr_db(reference: Tensor, answer: Tensor) -> float:
    noise = (reference - answer).square().sum()
    return float(10 * torch.log10(reference.square().sum() / noise))


def quantized(model: nn.Module, data: Tensor) -> Quantized:
    return quantize_static(
        fx.symbolic_trace(model.eval()),
        [data],
        [[data]],
        PtqConfig(observer="minmax", bias_correction=True),
        backend="arm",
        probes=[[data]],
    )


@pytest.mark.parametrize("engine", ["x86", "qnnpack"])
def test_the_engine_is_put_back(engine: str) -> None:
    before = torch.backends.quantized.engine
    try:
        torch.backends.quantized.engine = engine
        with engine_for("arm"):
            assert torch.backends.quantized.engine == "qnnpack"
            with engine_for("x86_vnni"):
                assert torch.backends.quantized.engine == "x86"
            assert torch.backends.quantized.engine == "qnnpack"
        assert torch.backends.quantized.engine == engine
    finally:
        torch.backends.quantized.engine = before


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["resnet18", "mobilenet_v2", "mobilenet_v3", "efficientnet", "shufflenet_v2"]
)
def test_answers_stay_close_and_files_load_under_either_engine(name: str) -> None:
    entry = ENTRIES[name]
    example = entry.example()
    lifted = lift(load(export(entry.model(), example, "trace")), example).graph_module
    config = PtqConfig(observer="minmax")
    result = quantize_static(lifted, example, [example], config, backend="arm")
    buffer = io.BytesIO()
    with torch.no_grad(), engine_for("arm"):
        expected, answer = lifted(*example), result.graph_module(*example)
        scripted = torch.jit.freeze(torch.jit.script(flatten(result.graph_module)).eval())
        torch.jit.save(scripted, buffer)
        buffer.seek(0)
        loaded = torch.jit.load(buffer)
        assert torch.equal(loaded(*example), answer)
    assert sqnr_db(expected, answer) > 33
    buffer.seek(0)
    torch.jit.load(buffer)  # packed afresh for the x86 engine; there it may overflow


def test_what_qnnpack_computes_wrongly_stays_float() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.ConvTranspose3d(4, 4, 3), nn.Conv3d(4, 2, 3), nn.Flatten(), nn.Linear(250, 3)
    )
    data = torch.randn(2, 4, 5, 5, 5)
    result = quantized(model, data)
    assert [layer.precision for layer in result.layers] == ["fp32", "fp32", "int8"]
    with torch.no_grad(), engine_for("arm"):
        assert sqnr_db(model(data), result.graph_module(data)) > 33


def test_activations_take_all_bits() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(64, 8)
    result = quantized(model, data)
    quantizer = next(
        n for n in result.graph_module.graph.nodes if n.target is torch.quantize_per_tensor
    )
    scale = float(getattr(result.graph_module, quantizer.args[1].target))
    assert scale == pytest.approx(float(data.max() - data.min()) / 255, rel=1e-4)
