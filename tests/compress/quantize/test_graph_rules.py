from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from compress.quantize.graph_rules import last_layers, make_quantizable


def rewritten(model: nn.Module, *data: Tensor) -> fx.GraphModule:
    graph_module = fx.symbolic_trace(model.eval())
    make_quantizable(graph_module, data)
    return graph_module


class Positions(nn.Module):
    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        ids = (ids + 1).clamp(0, 5) * 2
        ids += 1
        return x + x * torch.cat([ids, ids], 1)


def test_integer_arithmetic_is_hidden_from_quantization_and_float_is_not() -> None:
    data = torch.randn(2, 6), torch.arange(6).reshape(2, 3)
    graph_module = rewritten(Positions(), *data)
    plain = [
        n for n in graph_module.graph.nodes if isinstance(n.target, torch._ops.OpOverloadPacket)
    ]
    assert [n.target for n in plain] == [
        torch.ops.aten.add, torch.ops.aten.clamp, torch.ops.aten.mul, torch.ops.aten.add,
        torch.ops.aten.cat,
    ]  # fmt: skip
    assert torch.equal(graph_module(*data), Positions()(*data))


def test_views_become_reshapes_but_not_views_as_another_type() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.size(0), -1).view(torch.int32)

    data = torch.randn(2, 3, 4)
    graph_module = rewritten(Views(), data)
    targets = [n.target for n in graph_module.graph.nodes if n.op.startswith("call")]
    assert targets == ["size", "reshape", torch.ops.aten.view]
    assert torch.equal(graph_module(data), Views()(data))


def test_dropout_and_unused_sizes_go() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: Tensor) -> Tensor:
            x.size(1)
            return self.drop(x) * 2

    data = torch.randn(2, 3)
    graph_module = rewritten(Idle(), data)
    assert [n.op for n in graph_module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert torch.equal(graph_module(data), data * 2)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_becomes_numbers(padding: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, (3, 5), padding=padding, dilation=2))
    data = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        expected = model(data)
        graph_module = rewritten(model, data)
        assert not isinstance(graph_module.get_submodule("0").padding, str)
        assert torch.allclose(graph_module(data), expected, atol=1e-6)


def test_last_are_the_layers_that_no_product_follows() -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.left, self.right = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 2)
            self.aside = nn.Linear(4, 4)
            self.weight = nn.Parameter(torch.ones(2, 4))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            x = torch.relu(self.stem(x))
            side = nn.functional.linear(self.aside(x) + x, self.weight)
            return torch.sigmoid(self.left(x)), self.right(x) + side

    graph_module = fx.symbolic_trace(Heads())
    layers = {"stem", "left", "right", "aside"}
    assert last_layers(graph_module, layers) == {"left", "right"}
