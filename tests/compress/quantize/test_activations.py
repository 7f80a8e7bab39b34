"""One pass over the data for many plans, against a pass for each."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compress.lift import lift
from compress.quantize import quantize_static
from compress.quantize.activations import Activations
from compress.spec import LayerPrecision, Observer, PtqConfig


class Net(nn.Module):
    """Fused and lone relus, a clip, a sum, a join and a pool, which share or hide scales."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.third, self.norm = nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8)
        self.up = nn.ConvTranspose2d(16, 16, 3)
        self.up_norm, self.relu = nn.BatchNorm2d(16), nn.ReLU()
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        y = nn.functional.relu6(self.second(x))
        z = self.norm(self.third(y)) + x
        z = self.relu(self.up_norm(self.up(torch.cat([z.relu(), y], 1))))
        z = nn.functional.max_pool2d(z, 2)
        return self.head(z.mean((2, 3)).sigmoid())


class Data:
    """Calibration batches, and how often they were asked for."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)
        self.batches = [[torch.randn(4, 3, 10, 10, generator=generator)] for _ in range(3)]
        self.passes = 0

    def __call__(self) -> Iterator[list[Any]]:
        self.passes += 1
        yield from self.batches


@pytest.fixture(scope="module")
def lifted() -> fx.GraphModule:
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(2, 3, 10, 10)
    with torch.no_grad():
        for parameter in (net.norm.running_mean, net.up_norm.running_mean, net.norm.weight):
            assert parameter is not None
            parameter.uniform_(0.5, 2.0)
    return lift(torch.jit.trace(net, x), [x]).graph_module


PLANS: tuple[dict[str, LayerPrecision], ...] = (
    {},
    {"first": "fp32"},
    {"second": "fp16"},
    {"third": "fp32", "head": "fp32"},
    {"first": "fp32", "second": "fp32", "up": "fp32"},
)


@pytest.mark.slow
@pytest.mark.parametrize("observer", ["histogram", "minmax"])
def test_every_plan_gets_the_scales_that_a_pass_of_its_own_would_give_it(
    lifted: fx.GraphModule, observer: Observer
) -> None:
    data = Data()
    activations = Activations(data, counts=observer != "minmax")
    for overrides in PLANS:
        config = PtqConfig(observer=observer, overrides=overrides)
        shared = quantize_static(lifted, data.batches[0], activations, config)
        alone = quantize_static(lifted, data.batches[0], data.batches, config)
        for x in data.batches:
            assert torch.equal(shared.graph_module(*x), alone.graph_module(*x))
        assert _scales(shared.graph_module) == _scales(alone.graph_module)
        assert len(_scales(shared.graph_module)) > 2
    assert data.passes == 1


def _scales(graph_module: fx.GraphModule) -> dict[str, tuple[float, int]]:
    """Scale and zero point of each int8 layer and of each quantize in the graph."""
    found = {
        name: (float(module.scale), int(module.zero_point))
        for name, module in graph_module.named_modules()
        if hasattr(module, "zero_point")
    }
    for node in graph_module.graph.nodes:
        if node.op == "get_attr" and "_scale_" in str(node.target):
            zero = str(node.target).replace("_scale_", "_zero_point_")
            found[str(node.target)] = (
                float(getattr(graph_module, str(node.target))),
                int(getattr(graph_module, zero)),
            )
    return found
