"""Sensitivity of single layers against a model with that layer alone rounded by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

from compress.lift import lift
from compress.mixed.sensitivity import measure_sensitivity


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.second = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        x = torch.relu(self.second(x)) + x
        return self.head(x.mean((2, 3)))


@pytest.fixture
def net() -> Net:
    torch.manual_seed(0)
    return Net().eval()


def _db(signal: Tensor, other: Tensor) -> float:
    a, b = signal.double(), other.double()
    return 10 * math.log10(float((a**2).sum() / ((a - b) ** 2).sum()))


def _round(values: Tensor, scale: Tensor | float, low: int, high: int, zero: int = 0) -> Tensor:
    return (torch.clamp((values / scale).round() + zero, low, high) - zero) * scale


def test_int8_rounds_weights_by_channel_and_the_input(net: Net) -> None:
    x = torch.randn(4, 3, 12, 12)
    lifted = lift(torch.jit.trace(net, x), [x]).graph_module
    (found,) = measure_sensitivity(lifted, {"second": ["int8", "fp32"]}, [x])
    other = copy.deepcopy(net)
    with torch.no_grad():
        scale = other.second.weight.abs().amax((1, 2, 3), keepdim=True) / 127.5
        other.second.weight.copy_(_round(other.second.weight, scale, -128, 127))
        inner = torch.relu(net.first(x))  # its least value is 0
        rounded = _round(inner, float(inner.max()) / 127, 0, 127)
        expected = other.head((torch.relu(other.second(rounded)) + inner).mean((2, 3)))
        assert found.sqnr_db == pytest.approx(_db(net(x), expected), abs=0.05)


def test_static_int8_rounds_the_output_behind_its_relu_too(net: Net) -> None:
    x = torch.randn(4, 3, 12, 12)
    lifted = lift(torch.jit.trace(net, x), [x]).graph_module
    (found,) = measure_sensitivity(lifted, {"first": ["int8"]}, [x], static=["first"])
    other = copy.deepcopy(net)
    with torch.no_grad():
        scale = other.first.weight.abs().amax((1, 2, 3), keepdim=True) / 127.5
        other.first.weight.copy_(_round(other.first.weight, scale, -128, 127))
        low, high = float(x.min()), float(x.max())
        step = (high - low) / 127
        inner = torch.relu(other.first(_round(x, step, 0, 127, round(-low / step))))
        inner = _round(inner, float(inner.max()) / 127, 0, 127)
        expected = other.head((torch.relu(other.second(inner)) + inner).mean((2, 3)))
        assert found.sqnr_db == pytest.approx(_db(net(x), expected), abs=0.05)


@pytest.mark.parametrize(("precision", "dtype"), [("fp16", torch.half), ("bf16", torch.bfloat16)])
def test_half_rounds_weights_alone(net: Net, precision: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 3, 12, 12)
    lifted = lift(torch.jit.trace(net, x), [x]).graph_module
    before = {name: value.clone() for name, value in lifted.state_dict().items()}
    (found,) = measure_sensitivity(lifted, {"head": [precision]}, [x])  # type: ignore[list-item]
    other = copy.deepcopy(net)
    with torch.no_grad():
        other.head.weight.copy_(other.head.weight.to(dtype).float())
        assert found.sqnr_db == pytest.approx(_db(net(x), other(x)), abs=0.05)
    after = lifted.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_a_layer_with_outliers_is_the_most_sensitive(net: Net) -> None:
    with torch.no_grad():
        net.second.weight[:, 0] *= 300  # one weight in each channel leaves no steps to the others
        net.second.weight[0] *= 1
    x = torch.randn(8, 3, 12, 12)
    lifted = lift(torch.jit.trace(net, x), [x]).graph_module
    names = ["first", "second", "head"]
    seen: list[int] = []
    found = measure_sensitivity(
        lifted, {name: ["int8"] for name in names}, [x], per_channel=False,
        on_layer=lambda done, total: seen.append(done),
    )  # fmt: skip
    assert max(found, key=lambda each: each.noise).name == "second"
    assert seen == [1, 2, 3]
