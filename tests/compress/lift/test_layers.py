"""Layers with weights come back as modules of torch under their own names, fused ones opened."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from compress.lift import Lifted, lift
from tests.compress.lift.exported import HOWS, How, export


def agree(lifted: Lifted, model: nn.Module, *inputs: Any) -> None:
    with torch.no_grad():
        expected = model(*inputs)
    output = lifted.graph_module(*inputs)
    if isinstance(expected, Tensor):
        expected, output = (expected,), (output,)
    for mine, right in zip(output, expected, strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-5, atol=1e-6)


class Recurrent(nn.Module):
    def __init__(self, layer: nn.RNNBase) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(
    "layer",
    [
        lambda: nn.LSTM(4, 6, 2, batch_first=True, bidirectional=True, dropout=0.1),
        lambda: nn.LSTM(4, 6, proj_size=3, bias=False),
        lambda: nn.GRU(4, 6, 2, bidirectional=True),
        lambda: nn.RNN(4, 6, nonlinearity="relu"),
        lambda: nn.RNN(4, 6, bias=False),
    ],
    ids=["lstm", "lstm_projected", "gru", "rnn_relu", "rnn_tanh"],
)
def test_recurrent_layers(layer: Callable[[], nn.RNNBase], how: How) -> None:
    model = Recurrent(layer()).eval()
    given = torch.randn(3, 5, 4)
    lifted = lift(export(model, [given], how), [given])
    held = lifted.graph_module.get_submodule("layer")
    assert repr(held) == repr(model.layer)
    assert lifted.graph_module.state_dict().keys() == model.state_dict().keys()
    agree(lifted, model, torch.randn(2, 7, 4))
    lifted.graph_module(given).sum().backward()
    assert all(parameter.grad is not None for parameter in held.parameters())


class Cells(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTMCell(4, 4)
        self.gru = nn.GRUCell(4, 4)
        self.rnn = nn.RNNCell(4, 4, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        h, c = self.lstm(x, (x, x))
        for _ in range(3):
            h = self.rnn(self.gru(h, c), h)
        return h


def test_cells() -> None:
    model, given = Cells().eval(), torch.randn(3, 4)
    lifted = lift(export(model, [given], "script"), [given])
    assert lifted.report.modules == {"lstm": "LSTMCell", "gru": "GRUCell", "rnn": "RNNCell"}
    agree(lifted, model, torch.randn(5, 4))


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_fused_encoder_layer_is_opened(how: How, norm_first: bool, activation: str) -> None:
    layer = nn.TransformerEncoderLayer(
        8, 2, 16, batch_first=True, norm_first=norm_first, activation=activation
    )
    model, given = nn.Sequential(layer, nn.Linear(8, 3)).eval(), torch.randn(2, 5, 8)
    exported = export(model, [given], how)
    lifted = lift(exported, [given])
    targets = {str(node.target) for node in lifted.graph_module.graph.nodes}
    assert not any("encoder_layer_fwd" in target for target in targets)
    assert {"0.linear1", "0.linear2", "0.norm1", "0.norm2", "0.self_attn.out_proj"} <= targets
    assert set(lifted.graph_module.state_dict()) == set(model.state_dict())
    agree(lifted, model, torch.randn(3, 9, 8))
    lifted.graph_module(given).sum().backward()
    assert all(p.grad is not None for p in lifted.graph_module.parameters())


class Attends(nn.Module):
    def __init__(self, *, weights: bool, average: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.weights, self.average = weights, average

    def forward(self, x: Tensor, padding: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        plain, _ = self.attention(x, x, x, need_weights=False)
        masked, weights = self.attention(
            x, x, x, key_padding_mask=padding, attn_mask=mask, need_weights=self.weights,
            average_attn_weights=self.average,
        )  # fmt: skip
        return plain + masked, plain if weights is None else weights


@pytest.mark.slow
@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize(("weights", "average"), [(False, True), (True, True), (True, False)])
def test_fused_attention_is_opened(how: How, weights: bool, average: bool) -> None:
    model = Attends(weights=weights, average=average).eval()
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    given = [torch.randn(2, 5, 8), padding, torch.ones(5, 5, dtype=torch.bool).triu(1)]
    lifted = lift(export(model, given, how), given)
    assert not any(
        "_native_multi_head" in str(node.target) for node in lifted.graph_module.graph.nodes
    )
    agree(lifted, model, *given)
    for output in lifted.graph_module(*given):
        output.sum().backward(retain_graph=True)
    assert all(p.grad is not None for p in lifted.graph_module.parameters())


class Nests(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.head(self.encoder(x, src_key_padding_mask=padding))


def absent(*lengths: int, longest: int) -> Tensor:
    return torch.arange(longest) >= torch.tensor(lengths).unsqueeze(1)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_an_encoder_that_nests_its_padded_sequences_is_opened() -> None:
    model = Nests().eval()
    given = [torch.randn(3, 5, 8), absent(5, 3, 1, longest=5)]
    with torch.no_grad():  # only then it nests
        file = export(model, given, "trace")
    lifted = lift(file, given)
    assert "aten::_nested_tensor_from_mask" in lifted.report.operators
    assert lifted.report.islands == []
    assert lifted.report.modules["encoder.layers.1.linear2"] == "Linear"
    agree(lifted, model, *given)
    agree(lifted, model, torch.randn(2, 7, 8), absent(4, 7, longest=7))
    lifted.graph_module(*given).sum().backward()
    assert all(p.grad is not None for p in lifted.graph_module.parameters())


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
def test_bags_of_embeddings(how: How, mode: str) -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bag = nn.EmbeddingBag(10, 4, mode=mode, padding_idx=1)

        def forward(self, tokens: Tensor, offsets: Tensor) -> Tensor:
            return self.bag(tokens, offsets)

    model = Bags().eval()
    given = [torch.randint(0, 10, (9,)), torch.tensor([0, 4, 6])]
    lifted = lift(export(model, given, how), given)
    assert lifted.report.modules == {"bag": "EmbeddingBag"}
    agree(lifted, model, torch.randint(0, 10, (7,)), torch.tensor([0, 2]))


class Parts(nn.Module):
    """Writes to parts that an operator with several results gave."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x * 1
        first, second = y.chunk(2, 1)
        first.mul_(3)
        second[:, 0] = 7
        for index, row in enumerate(y.unbind(1)):
            row.add_(index)
        return y, first


@pytest.mark.parametrize("how", HOWS)
def test_writes_to_parts_reach_the_whole(how: How) -> None:
    given = torch.randn(2, 4)
    lifted = lift(export(Parts(), [given], how), [given])
    agree(lifted, Parts(), torch.randn(3, 4))


def frozen(model: nn.Module, inputs: Sequence[Tensor], how: How) -> torch.jit.ScriptModule:
    return export(torch.jit.freeze(export(model.eval(), inputs, how)), inputs, "script")


@pytest.mark.parametrize("how", HOWS)
def test_a_frozen_model_has_its_layers_again(how: How) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 4),
    ).eval()  # fmt: skip
    given = torch.randn(2, 3, 12, 12)
    lifted = lift(frozen(model, [given], how), [given])
    kinds = ["Conv2d", "Conv2d", "LayerNorm", "Linear"]
    assert list(lifted.report.modules.values()) == kinds
    assert lifted.report.parameters_lifted == lifted.report.parameters
    assert all(p.requires_grad for p in lifted.graph_module.parameters())
    agree(lifted, model, torch.randn(3, 3, 12, 12))


@pytest.mark.parametrize("layer", [nn.Linear(4, 3), nn.LSTM(4, 3)])
def test_a_model_that_is_one_layer_is_lifted_too(layer: nn.Module) -> None:
    given = torch.randn(2, 5, 4)
    lifted = lift(export(layer.eval(), [given], "trace"), [given])
    assert lifted.report.modules == {"layer": type(layer).__name__}


class BiasElsewhere(nn.Module):
    """Multiplies by a layer's weights, and does something of its own with its bias."""

    def __init__(self, *, convolves: bool) -> None:
        super().__init__()
        self.layer: nn.Module = nn.Conv1d(4, 4, 3, padding=1) if convolves else nn.Linear(4, 4)
        self.convolves = convolves

    def forward(self, x: Tensor) -> Tensor:
        if self.convolves:
            product = torch.conv1d(x, self.layer.weight, None, 1, 1)
        else:
            product = x @ self.layer.weight.t()
        bias = self.layer.bias
        assert bias is not None
        return torch.relu(product) * torch.relu(bias)


@pytest.mark.parametrize("how", HOWS)
@pytest.mark.parametrize("convolves", [False, True])
def test_a_bias_that_is_read_by_itself_is_not_added_to_the_product(
    convolves: bool, how: How
) -> None:
    model = BiasElsewhere(convolves=convolves).eval()
    given = torch.randn(2, 4, 4)
    lifted = lift(export(model, [given], how), [given])
    assert set(lifted.graph_module.state_dict()) == {"layer.weight", "layer.bias"}
    agree(lifted, model, torch.randn(3, 4, 4))
    lifted.graph_module(given).sum().backward()
    assert all(parameter.grad is not None for parameter in lifted.graph_module.parameters())
