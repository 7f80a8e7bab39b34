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


class Gated(nn.Module):
    def __init__(self, squash: nn.Module) -> None:
        super().__init__()
        self.first, self.squash, self.last = nn.Linear(16, 64), squash, nn.Linear(64, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.squash(self.first(x)).reshape(-1, 64))


class Functional(nn.Module):
    def __init__(self, target: object) -> None:
        super().__init__()
        self.target = target

    def forward(self, x: Tensor) -> Tensor:
        return self.target(x)  # type: ignore[operator]


@pytest.mark.parametrize(
    "squash", [nn.Tanh(), nn.Sigmoid(), Functional(torch.tanh), Functional(torch.sigmoid)]
)
def test_what_fills_eight_bits_goes_into_no_product(squash: nn.Module) -> None:
    model = Gated(squash)
    x = torch.full((4, 16), 3.0)
    with torch.no_grad():
        model.first.weight.fill_(1.0)  # all answers near 1, all products of one sign: the worst
        model.last.weight.fill_(1.0)
        model.last.bias.zero_()
        quantized = quantize(model, x)
        into_last = next(n for n in quantized.graph_module.graph.nodes if n.target == "last")
        source = into_last.args[0]
        while source.target is not torch.quantize_per_tensor:
            source = source.args[0]
        zero_point = (
            source.args[2]
            if isinstance(source.args[2], int)
            else int(getattr(quantized.graph_module, str(source.args[2].target)))
        )
        scale = float(getattr(quantized.graph_module, str(source.args[1].target)))
        assert (127 - zero_point) * scale >= 0.99  # 1 lies within seven bits
        assert torch.allclose(quantized.graph_module(x), model(x), rtol=0.02)


class Residual(nn.Module):
    """Sums, relus and a pool module, called twice, behind layers that may be float or not."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.fourth = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = self.pool(F.relu(self.second(x) + x))
        x = F.relu(self.third(x) + x)
        return self.fourth(self.pool(x))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("floats", "conversions"),
    [
        # quantize and dequantize around the only layer, of whose neighbours none is int8
        (("first", "second", "third"), 2),
        (("second", "third", "fourth"), 2),
        # a sum of an int8 and a float value is int8, as all after it
        (("second",), 4),
        ((), 2),
    ],
)
def test_nothing_is_rounded_between_layers_that_stay_float(
    floats: tuple[str, ...], conversions: int
) -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 12, 12)
    config = PtqConfig(overrides=dict.fromkeys(floats, "fp32"))  # type: ignore[arg-type]
    made = quantize_static(fx.symbolic_trace(net), [x], [[x]], config).graph_module
    calls = [node.target for node in made.graph.nodes]
    found = calls.count(torch.quantize_per_tensor) + calls.count("dequantize")
    assert found == conversions
    error = (made(x) - net(x)).square().sum() / net(x).square().sum()
    assert 10 * torch.log10(error) < (-35 if len(floats) == 3 else -25)


def test_one_int8_layer_adds_the_noise_of_its_own_alone() -> None:
    torch.manual_seed(0)
    net, x = Residual().eval(), torch.randn(4, 3, 12, 12)
    floats = dict.fromkeys(("first", "second", "third"), "fp32")
    config = PtqConfig(observer="minmax", overrides=floats)  # type: ignore[arg-type]
    made = quantize_static(fx.symbolic_trace(net), [x], [[x]], config).graph_module
    taken: list[Tensor] = []
    net.fourth.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0]))
    with torch.no_grad():
        net(x)
        step = float(taken[0].max()) / 127  # its least value is 0
        net.fourth.weight.copy_(_rounded_by_channel(net.fourth.weight))
        expected = net.fourth((taken[0] / step).round() * step)
        span = float(expected.max() - expected.min()) / 255
        assert float((made(x) - expected).abs().max()) <= span


def _rounded_by_channel(weight: Tensor) -> Tensor:
    scale = weight.abs().amax((1, 2, 3), keepdim=True) / 127.5
    return (weight / scale).round().clamp(-128, 127) * scale
