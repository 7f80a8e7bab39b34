"""int8 values stay int8 from the first layer to the last, in the finished TorchScript."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torch.nn import functional as F

from compress.export.flatten import flatten
from compress.lift import lift
from compress.quantize import quantize_static
from compress.spec import PtqConfig
from tests.compress.zoo.entry import export, load
from tests.compress.zoo.registry import ENTRIES

pytestmark = pytest.mark.slow


def counts(graph_module: fx.GraphModule) -> tuple[int, int]:
    """Return the numbers of quantize and dequantize calls."""
    scripted = torch.jit.freeze(torch.jit.script(flatten(graph_module)).eval())
    kinds = [node.kind() for node in scripted.inlined_graph.nodes()]
    return kinds.count("aten::quantize_per_tensor"), kinds.count("aten::dequantize")


def quantized(name: str) -> fx.GraphModule:
    entry = ENTRIES[name]
    example = entry.example()
    lifted = lift(load(export(entry.model(), example, "trace")), example, verify=False)
    config = PtqConfig(observer="minmax")
    result = quantize_static(lifted.graph_module, example, [example], config, full_range=False)
    return result.graph_module


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", (1, 1)),
        ("resnet50", (1, 1)),
        ("regnet", (1, 1)),
        ("mobilenet_v1", (1, 1)),
        ("mobilenet_v2", (1, 1)),
        ("mobilenet_v3", (1, 1)),
        ("shufflenet_v2", (1, 1)),
        ("densenet121", (1, 1)),
        # its forward changes the scale of each colour in float, then joins them
        pytest.param("googlenet", (3, 1), marks=pytest.mark.slow),
    ],
)
def test_values_are_quantized_once_and_dequantized_once(
    name: str, expected: tuple[int, int]
) -> None:
    assert counts(quantized(name)) == expected


def test_each_silu_costs_one_pair_and_no_copy() -> None:
    graph_module = quantized("efficientnet")
    silus = [node for node in graph_module.graph.nodes if node.target is F.silu]
    assert len(silus) == 13
    assert counts(graph_module) == (1 + len(silus), 1 + len(silus))
    assert all(node.kwargs == {"inplace": True} for node in silus)


def test_a_silu_whose_input_is_read_elsewhere_does_not_write_over_it() -> None:
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.silu = nn.Linear(8, 8), nn.SiLU()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = self.first(x)
            return self.silu(y) + torch.erf(y)

    torch.manual_seed(0)
    model, data = Both().eval(), torch.randn(16, 8)
    result = quantize_static(
        fx.symbolic_trace(model), [data], [[data]], PtqConfig(observer="minmax"), full_range=False
    )
    with torch.no_grad():
        expected, answer = model(data), result.graph_module(data)
    assert float((answer - expected).norm() / expected.norm()) < 0.05
