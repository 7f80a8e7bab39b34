from __future__ import annotations

import copy
from itertools import pairwise

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize import quantize_static
from compress.quantize.channels import Channels
from compress.quantize.equalize import equalize_
from compress.quantize.folding import fold_batch_norm
from compress.spec import PtqConfig


def uneven(layer: nn.Module, seed: int = 0) -> nn.Module:
    """Give a layer's output channels ranges that differ by up to e**6."""
    generator = torch.Generator().manual_seed(seed)
    channels = layer.weight.shape[0]  # type: ignore[union-attr, index]
    factors = (torch.rand(channels, generator=generator) * 6 - 3).exp()  # type: ignore[arg-type]
    with torch.no_grad():
        layer.weight.mul_(factors.view(-1, *[1] * (layer.weight.dim() - 1)))  # type: ignore[union-attr, operator]
    return layer


def equalized(model: nn.Module, data: Tensor) -> tuple[fx.GraphModule, list[str]]:
    """Equalize, and check that answers are the same."""
    graph_module = fx.symbolic_trace(copy.deepcopy(model).eval())
    with torch.no_grad():
        expected = graph_module(data)
        fold_batch_norm(graph_module)
        names = equalize_(graph_module, [[data]])
        answer = graph_module(data)
    assert torch.allclose(answer, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))
    return graph_module, names


def unevenness(graph_module: fx.GraphModule, name: str) -> float:
    peaks = Channels(graph_module.get_submodule(name)).output_peaks()
    return float(peaks.max() / peaks.min())


def test_factors_are_those_of_the_paper() -> None:
    first, second = uneven(nn.Linear(5, 4)), nn.Linear(4, 3)
    model = nn.Sequential(first, nn.ReLU(), second)
    r1, r2 = first.weight.detach().abs().amax(1), second.weight.detach().abs().amax(0)
    graph_module, names = equalized(model, torch.randn(6, 5))
    s = (r1 * r2).sqrt() / r2
    assert names == ["0", "2"]
    assert torch.allclose(graph_module.get_submodule("0").weight, first.weight / s[:, None])
    assert torch.allclose(graph_module.get_submodule("0").bias, first.bias / s)
    assert torch.allclose(graph_module.get_submodule("2").weight, second.weight * s)


def test_a_chain_through_batch_norm_and_depthwise_becomes_even() -> None:
    model = nn.Sequential(
        uneven(nn.Conv2d(3, 16, 3, bias=False)), nn.BatchNorm2d(16), nn.ReLU(),
        uneven(nn.Conv2d(16, 16, 3, groups=16), 1), nn.LeakyReLU(0.1), nn.MaxPool2d(2),
        nn.Conv2d(16, 8, 1), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, 5),
    )  # fmt: skip
    after, names = equalized(model, torch.randn(2, 3, 12, 12))
    assert names == ["0", "3", "6", "9"]
    channels = [Channels(after.get_submodule(name)) for name in names]
    for first, second in pairwise(channels):
        behind = second.input_peaks().view(first.outputs, -1).amax(1)
        assert torch.allclose(first.output_peaks(), behind, rtol=0.02)
    assert unevenness(after, "0") < unevenness(fx.symbolic_trace(model), "0") / 4


def test_grouped_convolutions_are_cut_by_their_groups() -> None:
    model = nn.Sequential(
        uneven(nn.Conv2d(4, 8, 3, groups=2)), nn.ReLU(), nn.Conv2d(8, 4, 1, groups=4)
    )
    after, names = equalized(model, torch.randn(2, 4, 6, 6))
    assert names == ["0", "2"]
    assert unevenness(after, "0") < unevenness(fx.symbolic_trace(model), "0")


class Fork(nn.Module):
    """Both branches see the first layer's scale, or an activation that does not keep it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.second = uneven(nn.Linear(4, 4)), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if self.kind == "residual":
            return self.second(F.relu(y)) + y
        if self.kind == "twice":
            return self.second(F.relu(self.first(F.relu(y))))
        if self.kind == "tied":
            return self.second(F.relu(y)) + self.first.weight[0, 0]
        if self.kind == "added":
            return self.second(y + 1)
        return self.second({"sigmoid": torch.sigmoid, "hardswish": F.hardswish}[self.kind](y))


@pytest.mark.parametrize("kind", ["residual", "twice", "tied", "added", "sigmoid", "hardswish"])
def test_nothing_moves_where_something_else_would_see_it(kind: str) -> None:
    model = Fork(kind)
    graph_module, names = equalized(model, torch.randn(3, 4))
    assert names == []
    assert torch.equal(graph_module.get_submodule("first").weight, model.first.weight)


def with_relu6() -> nn.Sequential:
    first, second = nn.Conv2d(1, 3, 1, bias=False), nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([8.0, 1.0, 0.01]).view(3, 1, 1, 1))
        second.weight.fill_(1.0)
    return nn.Sequential(first, nn.ReLU6(), second)


def test_relu6_clips_what_it_did_and_nothing_more() -> None:
    data = torch.linspace(-1, 2, 60).view(1, 1, 6, 10)
    after, _ = equalized(with_relu6(), data)
    weight = after.get_submodule("0").weight.flatten()
    assert float(weight[0]) == 8.0  # peaks at 16, so it is clipped
    assert float(weight[1]) == pytest.approx(1.0)  # even already, and its peak of 2 is far off
    # 0.02 could grow to 4.8 at most; the square root of both ranges comes first
    assert float(weight[2]) == pytest.approx(0.1, rel=1e-3)


def test_a_channel_below_relu6_keeps_its_headroom() -> None:
    model = with_relu6()
    with torch.no_grad():
        model[2].weight[:, 2] = 1e4  # type: ignore[index, union-attr]
    after, _ = equalized(model, torch.linspace(-1, 2, 60).view(1, 1, 6, 10))
    peak = 2 * float(after.get_submodule("0").weight.flatten()[2])
    assert peak == pytest.approx(6 / 1.25, rel=1e-3)


def test_empty_channels_stay_finite() -> None:
    first, second = nn.Linear(4, 3), nn.Linear(3, 2)
    with torch.no_grad():
        first.weight[1].zero_()
        second.weight[:, 2].zero_()
    equalized(nn.Sequential(first, nn.ReLU(), second), torch.randn(4, 4))


def test_int8_with_one_scale_for_all_weights_gets_back_what_uneven_channels_cost() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3, groups=32), nn.ReLU(),
        nn.Conv2d(32, 16, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    factors = (torch.rand(32) * 6 - 3).exp()  # that the next layer takes back
    Channels(model[0]).scale_outputs(factors)
    Channels(model[2]).scale_inputs(1 / factors)
    data = torch.randn(32, 3, 12, 12)
    sqnr_db = {}
    for equalize in (False, True):
        config = PtqConfig(granularity="per_tensor", equalize=equalize)
        graph_module = fx.symbolic_trace(model)
        result = quantize_static(graph_module, [data[:2]], [[data]], config, full_range=False)
        with torch.no_grad():
            expected, answer = model(data), result.graph_module(data)
        noise = (expected - answer).square().sum()
        sqnr_db[equalize] = float(10 * torch.log10(expected.square().sum() / noise))
    assert sqnr_db[True] > sqnr_db[False] + 10
