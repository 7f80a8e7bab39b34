from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import NothingToCompress
from compress.export.torchscript import export_torchscript
from compress.quantize import quantize_dynamic, to_float32, to_half
from compress.quantize.narrowing import store_half_
from compress.spec import PtqConfig
from tests.compress import zoo


@pytest.mark.parametrize(
    ("build", "shape"),
    [(zoo.mlp, (16,)), (zoo.small_cnn, (1, 8, 8)), (zoo.unet, (3, 32, 32))],
)
def test_half_stores_half_the_bytes_and_answers_in_float32(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, data = build(), torch.randn(4, *shape)
    result = to_half(fx.symbolic_trace(model))
    with torch.no_grad():
        expected, answer = model(data), result.graph_module(data)
    assert answer.dtype == torch.float32
    assert (answer - expected).abs().max() / expected.abs().max() < 2e-3
    assert {layer.precision for layer in result.layers} == {"fp16"}
    weights = list(result.graph_module.parameters())
    assert weights
    assert all(weight.dtype == torch.float16 for weight in weights)


def test_weights_are_the_originals_rounded_to_half() -> None:
    model = nn.Sequential(nn.Linear(8, 4))
    weight = to_half(fx.symbolic_trace(model)).graph_module.get_parameter("0.weight")
    assert torch.equal(weight, model[0].weight.half())


def test_float32_folds_batch_norm_and_keeps_answers() -> None:
    model, data = zoo.small_cnn(), torch.randn(4, 1, 8, 8)
    result = to_float32(fx.symbolic_trace(model))
    with torch.no_grad():
        assert torch.allclose(result.graph_module(data), model(data), atol=1e-5)
    assert [layer.name for layer in result.layers] == ["conv1", "conv2", "fc1", "fc2"]


def test_a_norm_that_two_layers_feed_is_not_folded() -> None:
    class Shared(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)) + self.conv(x * 2)

    model, data = zoo.settle(Shared()), torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        answer = to_float32(fx.symbolic_trace(model)).graph_module(data)
        assert torch.allclose(answer, model(data), atol=1e-6)


def test_weights_beyond_halfs_range_stay_float() -> None:
    model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)).eval()
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    layers = to_half(fx.symbolic_trace(model)).layers
    assert [layer.precision for layer in layers] == ["fp32", "fp16"]
    assert layers[0].reason == "a weight is beyond the range of float16"


def test_without_weights_there_is_nothing_to_halve() -> None:
    with pytest.raises(NothingToCompress):
        to_half(fx.symbolic_trace(nn.Sequential(nn.ReLU())))


def test_bfloat16_keeps_what_is_beyond_half_and_rounds_to_eight_bits() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 4)).eval(), torch.randn(3, 8)
    with torch.no_grad():
        model[0].weight.mul_(1e6)
    result = to_half(fx.symbolic_trace(model), precision="bf16", probes=[[data]])
    assert [layer.precision for layer in result.layers] == ["bf16"]
    assert result.layers[0].size_bytes == (144, 72)
    assert torch.equal(result.graph_module.get_parameter("0.weight"), model[0].weight.bfloat16())
    assert 35 < result.layers[0].sqnr_db < 70


class Recurrent(nn.Module):
    """The LSTM's state comes back, its table is a bag, and the last weight is the first."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(40, 16, mode="mean")
        self.lstm = nn.LSTM(16, 16, 2, bidirectional=True)
        self.cell = nn.GRUCell(32, 16)
        self.rnn = nn.RNN(16, 16)
        self.out = nn.Linear(16, 40, bias=False)
        self.out.weight = self.table.weight

    def forward(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        states, (_, memory) = self.lstm(self.table(ids).unsqueeze(1))
        return self.out(self.rnn(self.cell(states[:, 0]).unsqueeze(0))[0]), memory


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "bf16"])
@pytest.mark.parametrize("freeze", [True, False])
def test_recurrent_layers_and_bags_are_stored_in_half_in_the_file_too(
    precision: Any, freeze: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, ids = Recurrent().eval(), torch.randint(0, 40, (5, 3))
    graph = fx.symbolic_trace(model)
    result = to_half(graph, precision=precision, probes=[[ids]])
    assert {layer.precision for layer in result.layers} == {precision}
    assert all(layer.sqnr_db > (60 if precision == "fp16" else 40) for layer in result.layers)
    assert all(2 * after == before for before, after in (x.size_bytes for x in result.layers))
    assert isinstance(graph.get_submodule("lstm"), nn.LSTM)
    torch.jit.trace(model, (ids,)).save(str(tmp_path / "whole.pt"))
    sizes = {}
    for name, each in (("whole", to_float32(graph)), ("half", result)):
        export_torchscript(
            each.graph_module, tmp_path / "whole.pt", tmp_path / f"{name}.out", [[ids]],
            freeze=freeze,
        )  # fmt: skip
        sizes[name] = (tmp_path / f"{name}.out").stat().st_size
    weights = sum(weight.nbytes for weight in model.parameters())  # the shared one counts once
    assert sizes["half"] < weights / 2 + 25_000
    with torch.no_grad():
        answer = torch.jit.load(str(tmp_path / "half.out"))(ids)
        for one, other in zip(answer, model(ids), strict=True):
            assert one.dtype == torch.float32
            assert float((one - other).abs().max()) < 0.01 * float(other.abs().max())


def test_single_layers_of_a_graph_that_is_int8_elsewhere_become_half() -> None:
    torch.manual_seed(0)
    model, data = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), torch.randn(3, 8)
    config = PtqConfig(mode="dynamic", overrides={"2": "fp32"})
    graph = quantize_dynamic(fx.symbolic_trace(model), config, example_inputs=[data]).graph_module
    assert store_half_(graph, {"2": "fp16", "0": "int8"}) == {"2": None}
    assert graph.get_parameter("2.weight").dtype == torch.float16
    with torch.no_grad():
        assert float((graph(data) - model(data)).abs().max()) < 0.05


def test_what_cannot_be_half_says_why() -> None:
    model = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 4), nn.PReLU(4))
    with torch.no_grad():
        model[1].weight.fill_(1e6)
    reasons = store_half_(fx.symbolic_trace(model), {"0": "bf16", "1": "fp16", "2": "fp16"})
    assert reasons == {
        "0": "LayerNorm holds few weights, and they stay float for accuracy",
        "1": "a weight is beyond the range of float16",
        "2": "PReLU computes in the precision that its weights are stored in",
    }
