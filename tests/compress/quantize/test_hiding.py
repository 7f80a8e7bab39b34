"""What stays float is not seen by torch.ao, and loses nothing on the way."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize import Quantized, quantize_static
from compress.spec import PtqConfig


def quantize(model: nn.Module, *data: object) -> Quantized:
    torch.manual_seed(0)
    return quantize_static(
        fx.symbolic_trace(model.eval()), data, [data], PtqConfig(), full_range=False, probes=[data]
    )


class CausalAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm = nn.LayerNorm(8)

    def forward(self, x: Tensor) -> Tensor:
        mask = torch.triu(torch.full((5, 5), -math.inf), 1).reshape(1, 5, 5)
        scores = torch.matmul(self.query(x), x.transpose(1, 2)) + mask
        return self.norm(x + torch.matmul(torch.softmax(scores, -1), self.value(x)))  # type: ignore[no-any-return]


def test_a_causal_mask_stays_causal() -> None:
    x = torch.randn(2, 5, 8)
    result = quantize(CausalAttention(), x)
    assert {layer.name: layer.precision for layer in result.layers} == {
        "query": "int8", "value": "int8", "norm": "fp32",
    }  # fmt: skip
    later = x.clone()
    later[:, 3:] = 0.5
    before, after = result.graph_module(x), result.graph_module(later)
    assert torch.equal(before[:, :3], after[:, :3])


def test_sums_that_a_norm_takes_in_stay_float_and_those_that_a_layer_does_become_int8() -> None:
    class Sums(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8)
            self.norm = nn.LayerNorm(8)

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.norm((self.a(x) + x).reshape(-1, 8)), self.c(self.b(x) + x)

    graph = quantize(Sums(), torch.randn(4, 8)).graph_module.graph
    targets = [str(node.target) for node in graph.nodes]
    assert sum("built-in function add" in target for target in targets) == 1
    assert sum("quantized.add" in target for target in targets) == 1


def test_numbers_positions_and_masks_are_not_observed() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Linear(8, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor, ids: Tensor, scale: float) -> tuple[Tensor, Tensor]:
            ids = (ids + 1).clamp(0, 5) * 2
            x = self.first(x * scale) + 0.5 * ids
            return self.last(x), ids

    model, data = Mixed(), (torch.randn(3, 8), torch.arange(24).reshape(3, 8) % 4, 2.0)
    graph_module = quantize(model, *data).graph_module
    for mine, right in zip(graph_module(*data), model(*data), strict=True):
        assert mine.dtype == right.dtype
        assert float((mine - right).float().norm() / right.float().norm()) < 0.05


@pytest.mark.parametrize(
    "activation",
    [lambda x: F.leaky_relu(x, 0.2), lambda x: F.elu(x, 0.7),
     lambda x: F.interpolate(x[:, None], scale_factor=2, mode="bicubic")[:, 0]],
    ids=["leaky_relu", "elu", "bicubic"],
)  # fmt: skip
def test_operators_that_int8_has_other_or_no_kernels_for_run(activation: object) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.last = nn.Conv1d(4, 8, 1), nn.Conv1d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            y = activation(self.first(x))  # type: ignore[operator]
            return self.last(y[:, :8])  # type: ignore[no-any-return]

    model, x = Net(), torch.randn(2, 4, 6)
    result = quantize(model, x)
    assert [layer.precision for layer in result.layers] == ["int8", "int8"]
    expected = model(x)
    assert float((result.graph_module(x) - expected).norm() / expected.norm()) < 0.05
