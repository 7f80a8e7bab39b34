from __future__ import annotations

from collections.abc import Callable
from typing import get_args

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import InvalidSpec, NothingToCompress
from compress.quantize import Quantized, quantize_static
from compress.quantize.fx_layers import packed_call
from compress.spec import Observer, PtqConfig
from tests.compress import zoo


def quantize(model: nn.Module, data: Tensor, **config: object) -> Quantized:
    graph_module = fx.symbolic_trace(model.eval())
    return quantize_static(
        graph_module,
        [data[:2]],
        [[data]],
        PtqConfig(**config),  # type: ignore[arg-type]
        full_range=False,
        probes=[[data[:1]], [data[1:2]]],
    )


def sqnr_db(reference: Tensor, answer: Tensor) -> float:
    noise = (reference - answer).square().sum()
    return float(10 * torch.log10(reference.square().sum() / noise))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (zoo.mlp, (16,)),
        (zoo.small_cnn, (1, 8, 8)),
        (zoo.senet, (3, 32, 32)),
        (zoo.inception_block, (3, 32, 32)),
        (zoo.unet, (3, 32, 32)),
        (zoo.densenet, (3, 32, 32)),
        (lambda: zoo.mobilenet_v2(10, full=False), (3, 32, 32)),
    ],
)
def test_int8_answers_stay_close_to_float_ones(
    build: Callable[[], nn.Module], shape: tuple[int, ...]
) -> None:
    model, data = build(), torch.randn(8, *shape, generator=torch.Generator().manual_seed(0))
    result = quantize(model, data)
    with torch.no_grad():
        assert sqnr_db(model(data), result.graph_module(data)) > 25
    kept = {layer.type for layer in result.layers if layer.precision != "int8"}
    assert kept <= {"BatchNorm2d", "ConvTranspose2d"}


def test_every_weighted_layer_is_listed_with_its_bytes_and_error() -> None:
    data = torch.randn(16, 1, 8, 8)
    layers = {layer.name: layer for layer in quantize(zoo.small_cnn(), data).layers}
    assert list(layers) == ["conv1", "conv2", "fc1", "fc2"]  # BatchNorm is folded into them
    conv2 = layers["conv2"]
    assert conv2.type == "Conv2d"
    assert conv2.size_bytes[0] == 16 * 32 * 9 * 4
    # one byte a weight, a float bias from BatchNorm, a double scale and a zero point a channel
    assert conv2.size_bytes[1] == 16 * 32 * 9 + 32 * (4 + 8 + 8)
    assert all(20 < layer.sqnr_db < 70 for layer in layers.values() if layer.sqnr_db is not None)
    assert all(layer.reason is None for layer in layers.values())


def test_the_first_layers_error_matches_the_formula() -> None:
    model, data = zoo.small_cnn(), torch.randn(16, 1, 8, 8)
    result = quantize(model, data)
    with torch.no_grad():
        reference = F.relu(model.bn1(model.conv1(data[:2])))  # type: ignore[operator]
        node = next(n for n in result.graph_module.graph.nodes if n.target == "conv1")
        quantizer = node.args[0]
        scale, zero = (getattr(result.graph_module, str(arg.target)) for arg in quantizer.args[1:3])
        seen = torch.quantize_per_tensor(data[:2], float(scale), int(zero), torch.quint8)
        answer = result.graph_module.get_submodule("conv1")(seen).dequantize()
    assert result.layers[0].sqnr_db == pytest.approx(sqnr_db(reference, answer), abs=0.01)


def test_overrides_keep_layers_float_and_the_last_match_wins() -> None:
    data = torch.randn(8, 1, 8, 8)
    result = quantize(
        zoo.small_cnn(), data, overrides={"conv*": "fp32", "fc1": "fp32", "conv2": "int8"}
    )
    layers = {layer.name: layer for layer in result.layers}
    precisions = {name: layer.precision for name, layer in layers.items()}
    assert {n: p for n, p in precisions.items() if not n.startswith("bn")} == {
        "conv1": "fp32",
        "conv2": "int8",
        "fc1": "fp32",
        "fc2": "int8",
    }
    assert layers["conv1"].reason == "override 'conv*' keeps it fp32"
    assert layers["conv1"].size_bytes[0] == layers["conv1"].size_bytes[1]
    with torch.no_grad():
        assert sqnr_db(zoo.small_cnn()(data), result.graph_module(data)) > 25


@pytest.mark.parametrize(
    ("precision", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)]
)
def test_overrides_store_layers_in_half_between_int8_ones(
    precision: str, dtype: torch.dtype
) -> None:
    model, data = zoo.small_cnn(), torch.randn(8, 1, 8, 8)
    result = quantize(model, data, overrides={"conv2": precision, "fc2": precision})
    layers = {layer.name: layer for layer in result.layers}
    assert {name: layer.precision for name, layer in layers.items()} == {
        "conv1": "int8", "conv2": precision, "fc1": "int8", "fc2": precision,
    }  # fmt: skip
    for name in ("conv2", "fc2"):
        assert layers[name].reason is None
        # what a fused pair holds besides is a relu
        weights = [w for w in result.graph_module.get_submodule(name).parameters() if w.dim() > 1]
        assert [weight.dtype for weight in weights] == [dtype]
    assert layers["fc2"].size_bytes == (4 * (64 * 10 + 10), 2 * (64 * 10 + 10))
    with torch.no_grad():
        assert sqnr_db(model(data), result.graph_module(data)) > 25


def test_what_cannot_be_stored_in_half_says_why() -> None:
    model, data = zoo.small_cnn(), torch.randn(8, 1, 8, 8)
    with torch.no_grad():
        model.fc2.weight[0, 0] = 1e5  # type: ignore[union-attr, index, operator]
    layers = {n.name: n for n in quantize(model, data, overrides={"fc2": "fp16"}).layers}
    assert layers["fc2"].precision == "fp32"
    assert "beyond the range of float16" in str(layers["fc2"].reason)


def test_a_pattern_that_matches_nothing_names_close_ones() -> None:
    with pytest.raises(InvalidSpec, match=r"'conv3' matches no layer.*'conv[12]'"):
        quantize(zoo.small_cnn(), torch.randn(4, 1, 8, 8), overrides={"conv3": "fp32"})


def test_a_model_without_weights_has_nothing_to_compress() -> None:
    with pytest.raises(NothingToCompress, match="no layer with weights"):
        quantize(nn.Sequential(nn.ReLU(), nn.Flatten()), torch.randn(4, 3))


def test_all_layers_overridden_leaves_nothing_to_compress() -> None:
    with pytest.raises(NothingToCompress, match="override"):
        quantize(zoo.mlp(), torch.randn(4, 16), overrides={"*": "fp32"})


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.norm = nn.LayerNorm(8)
        self.cell = nn.LSTM(8, 16, batch_first=True)
        self.head = nn.Linear(16, 3)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.cell(self.norm(self.embed(ids + 1)))[0][:, -1])


def test_what_has_no_int8_kernel_stays_float_and_says_why() -> None:
    torch.manual_seed(0)
    model, ids = Recurrent(), torch.randint(0, 18, (8, 5))
    result = quantize(model, ids)
    reasons = {layer.name: layer.reason for layer in result.layers}
    assert reasons["head"] is None
    assert "LSTM has no static int8 kernel" in str(reasons["cell"])
    assert "Embedding" in str(reasons["embed"])
    assert "LayerNorm" in str(reasons["norm"])
    with torch.no_grad():
        assert sqnr_db(model(ids), result.graph_module(ids)) > 25


def fingerprint(result: Quantized) -> list[object]:
    """Every weight, bias, scale and zero point."""
    found: list[object] = []
    for name, module in result.graph_module.named_modules():
        call = packed_call(module)
        if call is not None:
            weight, bias = module.weight(), module.bias()  # type: ignore[operator]
            found += [name, call.scale, call.zero_point, weight.int_repr().tolist()]
            found += [weight.q_per_channel_scales().tolist(), bias.tolist()]
    return [*found, {k: v.tolist() for k, v in result.graph_module.named_buffers()}]


@pytest.mark.slow
@pytest.mark.parametrize("observer", get_args(Observer))
def test_two_runs_give_equal_bytes_of_weights_and_scales(observer: str) -> None:
    data = torch.randn(16, 1, 8, 8)
    first, second = (quantize(zoo.small_cnn(), data, observer=observer) for _ in range(2))
    assert fingerprint(first) == fingerprint(second)


def test_the_float_graph_is_left_as_it_was() -> None:
    model = fx.symbolic_trace(zoo.small_cnn())
    data = torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        before = model(data)
        quantize_static(model, [data], [[data]], PtqConfig(), full_range=False)
        assert torch.equal(model(data), before)


@pytest.mark.slow
@pytest.mark.parametrize("observer", get_args(Observer))
@pytest.mark.parametrize("granularity", ["per_channel", "per_tensor"])
def test_every_choice_of_observer_and_granularity_works(observer: str, granularity: str) -> None:
    model, data = zoo.small_cnn(), torch.randn(8, 1, 8, 8)
    result = quantize(model, data, observer=observer, granularity=granularity)
    with torch.no_grad():
        assert sqnr_db(model(data), result.graph_module(data)) > 25


def test_same_padding_is_spelt_out_and_an_even_kernel_stays_float() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding="same"), nn.Conv2d(4, 4, 2, padding="same"))
    result = quantize(model, torch.randn(4, 3, 8, 8))
    assert [layer.precision for layer in result.layers] == ["int8", "fp32"]
    assert "even kernel" in str(result.layers[1].reason)


def test_what_a_last_layer_takes_in_cannot_overflow_either() -> None:
    """Its input comes from a float part, so nothing but it asks for a scale there."""
    model = nn.Sequential(nn.LayerNorm(16), nn.Linear(16, 4))
    with torch.no_grad():
        model[1].weight.fill_(1.0)  # type: ignore[operator, union-attr]
    data = torch.randn(8, 16).abs()
    result = quantize(model, data)
    quantizer = next(
        n for n in result.graph_module.graph.nodes if n.target is torch.quantize_per_tensor
    )
    scale = float(getattr(result.graph_module, quantizer.args[1].target))
    with torch.no_grad():
        normed = model[0](data)
    assert scale == pytest.approx(float(normed.max() - normed.min()) / 127, rel=0.25)


def test_the_last_layer_uses_all_steps_where_others_must_not() -> None:
    data = torch.randn(32, 16, generator=torch.Generator().manual_seed(0))
    graph_module = fx.symbolic_trace(zoo.mlp())
    result = quantize_static(
        graph_module, [data[:2]], [[data]], PtqConfig(observer="minmax"), full_range=False
    )
    with torch.no_grad():
        answers = graph_module(data)
    calls = [packed_call(result.graph_module.get_submodule(layer.name)) for layer in result.layers]
    assert calls[-1] is not None
    span = float(answers.max() - answers.min())
    assert calls[-1].scale == pytest.approx(span / 255, rel=0.05)


def test_weights_that_belong_to_no_layer_are_told_of() -> None:
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.randn(3, 4))

        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, self.kernel)

    with pytest.raises(NothingToCompress, match=r"without torch\.jit\.freeze"):
        quantize(Bare(), torch.randn(4, 4))
