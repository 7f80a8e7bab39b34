from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize.smoothquant import smooth_


class Block(nn.Module):
    """A block of a transformer that norms first; `kind` says what else sees the norm."""

    def __init__(self, kind: str = "plain", width: int = 8) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, 2 * width, bias=False)
        self.scale = nn.Parameter(torch.rand(width) + 0.5)
        self.kernel = nn.Parameter(torch.randn(3, width))
        self.drop = nn.Dropout(0.1)
        with torch.no_grad():
            self.norm.weight[3], self.norm.bias[5] = 60.0, -40.0

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "rms":
            y = self.scale * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 1e-6))
        else:
            y = self.norm(x)
        if self.kind == "moved":
            y = self.drop(y).reshape(y.size(0) * y.size(1), y.size(2))[:, :].transpose(0, 0)
            y = y.reshape(x.size(0), x.size(1), 8).permute(1, 0, 2)[0]
        if self.kind == "turned":
            y = y.transpose(1, 2)
        if self.kind == "cut":
            y = torch.cat([y[..., 4:], y[..., :4]], -1)
        if self.kind == "functional":
            return F.linear(y, self.kernel)
        out = torch.cat([self.query(y), self.key(y)], -1)
        if self.kind == "residual":
            return out + torch.cat([y, y, y], -1)
        return out + self.query(x).repeat(1, 1, 3) if self.kind == "shared" else out


def data(axes: int = 5) -> Tensor:
    return torch.randn(2, axes, 8, generator=torch.Generator().manual_seed(1))


def smoothed(kind: str, alpha: float = 0.5) -> tuple[nn.Module, fx.GraphModule, list[str]]:
    torch.manual_seed(0)
    model = Block(kind).eval()
    graph_module = fx.symbolic_trace(copy.deepcopy(model))
    values = data(8) if kind == "turned" else data()
    names = smooth_(graph_module, [[values], [values * 0.9]], alpha)
    with torch.no_grad():
        assert torch.allclose(graph_module(values), model(values), rtol=1e-4, atol=1e-4)
    return model, graph_module, names


@pytest.mark.parametrize("alpha", [0.0, 0.3, 0.5, 1.0])
def test_factors_are_those_of_the_paper(alpha: float) -> None:
    model, graph_module, names = smoothed("plain", alpha)
    with torch.no_grad():
        activations = model.norm(data()).abs().amax((0, 1))  # type: ignore[operator]
        both = torch.cat([model.query.weight, model.key.weight])  # type: ignore[list-item, union-attr]
    s = activations**alpha / both.abs().amax(0) ** (1 - alpha)
    assert names == ["norm"]
    for name in ("query", "key"):
        expected = model.get_submodule(name).weight * s
        assert torch.allclose(graph_module.get_submodule(name).weight, expected, rtol=1e-4)
    norm = graph_module.get_submodule("norm")
    assert torch.allclose(norm.weight, model.norm.weight / s, rtol=1e-4)  # type: ignore[union-attr]
    assert torch.allclose(norm.bias, model.norm.bias / s, rtol=1e-4)  # type: ignore[union-attr]


def test_outliers_shrink() -> None:
    model, graph_module, _ = smoothed("plain")

    def spread(module: nn.Module) -> float:
        with torch.no_grad():
            peaks = module.get_submodule("norm")(data()).abs().amax((0, 1))
        return float(peaks.max() / peaks.min())

    assert spread(graph_module) < spread(model) / 5


@pytest.mark.parametrize(
    ("kind", "name"),
    [("rms", "scale"), ("moved", "norm"), ("functional", "norm")],
)
def test_norms_are_found_however_they_and_the_layers_are_written(kind: str, name: str) -> None:
    assert smoothed(kind)[2] == [name]


@pytest.mark.parametrize("kind", ["residual", "shared", "turned", "cut"])
def test_norms_stay_whose_channels_something_else_sees(kind: str) -> None:
    model, graph_module, names = smoothed(kind)
    assert names == []
    assert torch.equal(graph_module.get_submodule("norm").weight, model.norm.weight)  # type: ignore[union-attr]
