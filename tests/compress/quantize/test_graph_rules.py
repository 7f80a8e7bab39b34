from __future__ import annotations

import pytest
import torch
from torch import Tensor, fx, nn

from compress.quantize.graph_rules import last_layers, make_quantizable


def rewritten(model: nn.Module) -> fx.GraphModule:
    graph_module = fx.symbolic_trace(model.eval())
    make_quantizable(graph_module)
    return graph_module


def test_views_become_reshapes_but_not_views_as_another_type() -> None:
    class Views(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.view(x.size(0), -1).view(torch.int32)

    data = torch.randn(2, 3, 4)
    graph_module = rewritten(Views())
    targets = [n.target for n in graph_module.graph.nodes if n.op.startswith("call")]
    assert targets == ["size", "reshape", "view"]
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
    graph_module = rewritten(Idle())
    assert [n.op for n in graph_module.graph.nodes] == ["placeholder", "call_function", "output"]
    assert torch.equal(graph_module(data), data * 2)


@pytest.mark.parametrize("padding", ["same", "valid"])
def test_named_padding_becomes_numbers(padding: str) -> None:
    model = nn.Sequential(nn.Conv2d(2, 2, (3, 5), padding=padding, dilation=2))
    data = torch.randn(1, 2, 16, 16)
    with torch.no_grad():
        expected = model(data)
        graph_module = rewritten(model)
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


@pytest.mark.parametrize("channels", [2, 5, 8])
def test_parts_become_narrows_of_the_same_elements(channels: int) -> None:
    class Parts(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            left, right = torch.chunk(x, 2, 1)
            return torch.cat([right * 2, left], 1)

    data = torch.randn(2, channels, 3)
    graph_module = rewritten(Parts())
    targets = [node.target for node in graph_module.graph.nodes]
    assert targets.count(torch.narrow) == 2
    assert torch.chunk not in targets
    assert torch.equal(graph_module(data), Parts()(data))


def test_a_split_of_given_lengths_becomes_narrows() -> None:
    class Split(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            a, _, c = torch.split(x, [1, 4, 3], dim=1)
            return torch.cat([c, a], 1)

    data = torch.randn(2, 8, 3)
    graph_module = rewritten(Split())
    assert [n.target for n in graph_module.graph.nodes].count(torch.narrow) == 2
    assert torch.equal(graph_module(data), Split()(data))


def test_uneven_chunks_stay_tuples() -> None:
    class Chunks(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.cat(torch.chunk(x, 3, 1)[::-1], 1)

    data = torch.randn(2, 8, 3)
    assert torch.equal(rewritten(Chunks())(data), Chunks()(data))
