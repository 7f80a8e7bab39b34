from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import NothingToCompress
from compress.quantize import to_float32, to_half
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
