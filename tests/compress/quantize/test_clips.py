"""relu6 and its like: scales are those of what they leave."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize import Quantized, quantize_static
from compress.quantize.fx_backend import clip_ends, engine_for
from compress.quantize.fx_layers import output_span
from compress.spec import PtqConfig


class Clipped(nn.Module):
    """A layer whose output reaches far beyond what is left of it."""

    def __init__(self, clip: Any, twice: bool = False) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.clip, self.twice = clip, twice
        with torch.no_grad():
            self.first.weight.mul_(40)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        z = self.second(self.clip(y))
        return z + y.mean() if self.twice else z


CLIPS: dict[str, Any] = {
    "module": nn.ReLU6(),
    "relu6": F.relu6,
    "hardtanh": lambda x: F.hardtanh(x, -1.0, 2.0),
    "lifted": lambda x: F.hardtanh(x, 0.0, 6.0),
    "clamp": lambda x: torch.clamp(x, min=0, max=3),
}


def data() -> Tensor:
    return torch.randn(8, 4, 9, 9, generator=torch.Generator().manual_seed(0))


def quantized(model: nn.Module, **options: Any) -> Quantized:
    config = PtqConfig(observer="minmax")
    graph_module = fx.symbolic_trace(model.eval())
    return quantize_static(graph_module, [data()], [[data()]], config, probes=[[data()]], **options)


def sqnr_db(reference: Tensor, answer: Tensor) -> float:
    noise = (reference - answer).square().sum()
    return float(10 * torch.log10(reference.square().sum() / noise))


@pytest.mark.parametrize("clip", CLIPS)
def test_the_scale_spans_what_is_left(clip: str) -> None:
    torch.manual_seed(0)
    model = Clipped(CLIPS[clip])
    result = quantized(model)
    span = output_span(result.graph_module.get_submodule("first"))
    with torch.no_grad():
        left = model.clip(model.first(data()))
        assert sqnr_db(model(data()), result.graph_module(data())) > 24
    assert span is not None
    assert span.step == pytest.approx(float(left.max() - left.min()) / 127, rel=1e-3)
    assert all(layer.sqnr_db > 24 for layer in result.layers if layer.sqnr_db is not None)


@pytest.mark.parametrize("clip", CLIPS)
def test_on_arm_the_scale_itself_clips(clip: str) -> None:
    """There the kernel for clipping mixes elements up; and all 8 bits are used."""
    torch.manual_seed(0)
    model = Clipped(CLIPS[clip])
    result = quantized(model, backend="arm")
    graph_module = result.graph_module
    assert all(clip_ends(graph_module, node) is None for node in graph_module.graph.nodes)
    with torch.no_grad():
        assert sqnr_db(model(data()), _on_qnnpack(graph_module, data())) > 29


@pytest.mark.parametrize("backend", ["x86", "arm"])
def test_what_is_read_before_it_is_clipped_keeps_its_own_scale(backend: str) -> None:
    torch.manual_seed(0)
    model = Clipped(F.relu6, twice=True)
    result = quantized(model, backend=backend)
    span = output_span(result.graph_module.get_submodule("first"))
    assert span is not None
    assert span.high > 12
    with torch.no_grad():
        answer = _on_qnnpack(result.graph_module, data()) if backend == "arm" else (
            result.graph_module(data())
        )  # fmt: skip
        assert sqnr_db(model(data()), answer) > 20


def _on_qnnpack(graph_module: fx.GraphModule, values: Tensor) -> Tensor:
    with engine_for("arm"):
        answer: Tensor = graph_module(values)
    return answer
