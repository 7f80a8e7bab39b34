"""Layers of finished graphs: against float of the very integers, and as TorchScript files."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.quantize.modules import (
    DynamicLinear,
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    StoredLayer,
    WeightOnlyConv,
    WeightOnlyLinear,
)
from compress.quantize.packing import PackedRows, StoredFloat
from compress.quantize.recurrent import DynamicGRU, DynamicGRUCell, DynamicLSTM, DynamicLSTMCell
from compress.quantize.rounding import round_int4, round_int8, round_without_overflow
from compress.quantize.stored_recurrent import flat_weights, store_recurrent


def rows_of(weight: Tensor, bits: int, group: int | None = None) -> PackedRows:
    """A weight in integers, a scale for each output channel or for `group` weights of one."""
    flat = weight.detach().reshape(weight.shape[0], -1)
    length = group or flat.shape[1] + flat.shape[1] % 2
    padded = F.pad(flat, (0, -flat.shape[1] % length)).reshape(-1, length)
    rounded = round_int8(padded) if bits == 8 else round_int4(padded)
    return PackedRows(rounded, bits, tuple(weight.shape))


def widened(weight: PackedRows) -> Tensor:
    """By arithmetic alone."""
    flat = weight.integers().dequantize().reshape(weight.channels, -1)
    return flat[:, : weight.width].reshape(weight.shape)


def from_file(module: nn.Module, *, freeze: bool = False) -> torch.jit.ScriptModule:
    scripted = torch.jit.script(module.eval())
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.freeze(scripted) if freeze else scripted, buffer)
    buffer.seek(0)
    return torch.jit.load(buffer)


def file_size(module: nn.Module, *, freeze: bool) -> int:
    buffer = io.BytesIO()
    scripted = torch.jit.script(module.eval())
    torch.jit.save(torch.jit.freeze(scripted) if freeze else scripted, buffer)
    return len(buffer.getvalue())


def tensors(value: Any) -> list[Tensor]:
    return [value] if isinstance(value, Tensor) else [t for each in value for t in tensors(each)]


def assert_same(left: Any, right: Any, tolerance: float = 1e-5) -> None:
    for one, other in zip(tensors(left), tensors(right), strict=True):
        assert one.shape == other.shape
        assert float((one - other).abs().max()) <= tolerance * float(other.abs().max().clamp(min=1))


def sqnr_db(answer: Any, wanted: Any) -> float:
    noise = sum(
        float((a - w).square().sum()) for a, w in zip(tensors(answer), tensors(wanted), strict=True)
    )
    signal = sum(float(w.square().sum()) for w in tensors(wanted))
    return float(10 * torch.log10(torch.tensor(signal / noise)))


@pytest.mark.parametrize("per_channel", [True, False])
@pytest.mark.parametrize("width", [32, 33])
def test_dynamic_linear_is_the_integer_product_of_full_range_activations(
    per_channel: bool, width: int
) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(width, 24).requires_grad_(False)
    integers = round_without_overflow(linear.weight.detach(), per_channel=per_channel)
    layer = DynamicLinear(integers, linear.bias.detach(), per_channel=per_channel)
    x = torch.rand(64, width) * 3 - 0.5
    scale, zero_point = torch._choose_qparams_per_tensor(x, False)
    steps = (x / scale + zero_point).round().clamp(0, 255) - zero_point
    weight = layer.int8_weight().double() * layer.weight_scale().double().reshape(-1, 1)
    wanted = (steps.double() @ weight.T) * scale + linear.bias.double()
    # a value halfway between two steps may go to either
    step = scale * float(weight.abs().max()) * 1.01
    assert float((layer(x).double() - wanted).abs().max()) <= step
    assert layer.weight_scale().shape == ((24,) if per_channel else ())
    assert torch.equal(layer.bias(), linear.bias)


def test_no_sum_of_two_neighbours_overflows_even_where_all_weights_are_large() -> None:
    weight = torch.ones(4, 64) * torch.tensor([1.0, -1.0, 0.5, 3.0])[:, None]
    layer = DynamicLinear(round_without_overflow(weight, per_channel=True), None, per_channel=True)
    x = torch.ones(8, 64)
    x[0, 0] = 0.0  # the range begins there
    assert float((layer(x) - x @ weight.T).abs().max() / weight.abs().max()) < 64 * 0.01


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 32])
def test_weight_only_linear_multiplies_with_the_widened_integers(
    bits: int, group: int | None
) -> None:
    torch.manual_seed(0)
    linear, x = nn.Linear(72, 10), torch.randn(3, 5, 72)
    layer = WeightOnlyLinear(rows_of(linear.weight, bits, group), linear.bias)
    wanted = F.linear(x, widened(layer.weight), linear.bias)
    assert_same(layer(x), wanted)
    assert sqnr_db(layer(x), linear(x)) > (38 if bits == 8 else 15)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("size", [1e-7, 1e4])
def test_weights_of_any_size_keep_their_precision(bits: int, size: float) -> None:
    torch.manual_seed(0)
    weight = torch.randn(8, 64) * size
    rows = rows_of(weight, bits)
    assert sqnr_db(rows(torch.zeros(1)), weight) > (35 if bits == 8 else 15)
    assert_same(rows(torch.zeros(1)) / size, widened(rows) / size)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 11)),
        (nn.Conv2d(4, 6, (3, 4), padding="same", dilation=2), (2, 4, 9, 9)),
        (nn.Conv2d(4, 8, 3, groups=2, bias=False), (2, 4, 9, 9)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1), (2, 4, 5, 5)),
        (nn.ConvTranspose1d(4, 6, 3, groups=2), (2, 4, 5)),
        (nn.Conv3d(2, 3, 3), (1, 2, 5, 5, 5)),
    ],
)
def test_weight_only_convolutions_keep_every_setting(
    layer: nn.Module, shape: tuple[int, ...]
) -> None:
    torch.manual_seed(0)
    converted = WeightOnlyConv(rows_of(layer.weight, 8), layer)
    exact = copy.deepcopy(layer)
    with torch.no_grad():
        exact.weight.copy_(widened(converted.weight))
        x = torch.randn(shape)
        assert_same(converted(x), exact(x))
        assert_same(from_file(converted)(x), exact(x))


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("group", [None, 8])
def test_embeddings_widen_what_they_look_up(bits: int, group: int | None) -> None:
    torch.manual_seed(0)
    table = nn.Embedding(50, 12)
    weight = rows_of(table.weight, bits, group)
    layer = from_file(QuantizedEmbedding(weight))
    for indices in (torch.randint(0, 50, (3, 5)), torch.tensor(7), torch.zeros(0, 4).long()):
        assert torch.equal(layer(indices), F.embedding(indices, widened(weight)))


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding", [None, 3])
@pytest.mark.parametrize("last", [True, False])
def test_embedding_bags_reduce_as_in_float(mode: str, padding: int | None, last: bool) -> None:
    torch.manual_seed(0)
    bag = nn.EmbeddingBag(10, 6, mode=mode, padding_idx=padding, include_last_offset=last)
    weight = rows_of(bag.weight, 8)
    layer = from_file(QuantizedEmbeddingBag(weight, bag))
    with torch.no_grad():
        bag.weight.copy_(widened(weight))
    indices = torch.randint(0, 10, (9,))
    offsets = torch.tensor([0, 4, 4, 9] if last else [0, 4, 4])
    assert_same(layer(indices, offsets), bag(indices, offsets))
    if mode == "sum":
        shares = torch.rand(9)
        assert_same(layer(indices, offsets, shares), bag(indices, offsets, shares))
    if not last:
        together = torch.randint(0, 10, (4, 5))
        assert_same(layer(together), bag(together))


RECURRENT: list[Callable[[], nn.Module]] = [
    lambda: nn.LSTM(8, 12, 2, batch_first=True, bidirectional=True),
    lambda: nn.LSTM(8, 12, bias=False),
    lambda: nn.LSTM(8, 12, proj_size=5),
    lambda: nn.GRU(8, 12, 2, bidirectional=True),
    lambda: nn.GRU(8, 12, batch_first=True),
    lambda: nn.RNN(8, 12, nonlinearity="relu"),
    lambda: nn.RNN(8, 12, 2, batch_first=True),
    lambda: nn.LSTMCell(8, 12),
    lambda: nn.GRUCell(8, 12, bias=False),
    lambda: nn.RNNCell(8, 12, nonlinearity="relu"),
]


def steps(layer: nn.Module) -> Tensor:
    return torch.randn(3, 8) if isinstance(layer, nn.RNNCellBase) else torch.randn(3, 7, 8)


@pytest.mark.parametrize("build", RECURRENT)
def test_stored_recurrent_layers_compute_with_the_widened_weights(
    build: Callable[[], nn.Module],
) -> None:
    torch.manual_seed(0)
    layer = build()
    converted = store_recurrent(layer, lambda weight: StoredFloat(weight.half()), "fp16")
    assert converted is not None
    with torch.no_grad():
        for weight in flat_weights(layer):
            weight.copy_(weight.half().float())
        x = steps(layer)
        assert_same(converted(x), layer(x))
        assert_same(from_file(converted)(x), layer(x))
    assert converted.stored_bytes() == 2 * sum(w.numel() for w in flat_weights(layer))


@pytest.mark.parametrize(
    ("build", "kind"),
    [
        (RECURRENT[0], DynamicLSTM),
        (RECURRENT[1], DynamicLSTM),
        (RECURRENT[3], DynamicGRU),
        (RECURRENT[4], DynamicGRU),
        (RECURRENT[7], DynamicLSTMCell),
        (RECURRENT[8], DynamicGRUCell),
    ],
)
def test_dynamic_recurrent_layers_come_close_and_load_again(
    build: Callable[[], nn.Module], kind: Any
) -> None:
    torch.manual_seed(0)
    layer = build()
    converted = kind(
        layer, lambda weight: round_without_overflow(weight, per_channel=True), per_channel=True
    )
    x = steps(layer)
    with torch.no_grad():
        wanted, answer = layer(x), converted(x)
        assert sqnr_db(answer, wanted) > 30
        assert_same(from_file(converted)(x), answer, 0.0)
        after = answer[1] if isinstance(answer[1], tuple) or answer[1].dim() == 3 else answer
        before = wanted[1] if after is answer[1] else wanted
        assert_same(tensors(converted(x, after))[0], tensors(layer(x, before))[0], 0.05)
    weight = getattr(layer, "weight_hh", None)
    weight = layer.weight_hh_l0 if weight is None else weight
    rounded = converted.int8_weight(0, "hh") * converted.weight_scale(0, "hh")[:, None]
    assert float((rounded - weight).abs().max()) < 0.02 * float(weight.abs().max())
    bias = getattr(layer, "bias_hh", getattr(layer, "bias_hh_l0", None))
    assert torch.equal(converted.bias(0, "hh"), torch.zeros(len(weight)) if bias is None else bias)


@pytest.mark.parametrize("freeze", [True, False])
@pytest.mark.parametrize(
    ("build", "bytes_each"),
    [
        (lambda w: WeightOnlyLinear(rows_of(w, 8), None), 1.0),
        (lambda w: WeightOnlyLinear(rows_of(w, 4, 64), None), 0.5 + 4 / 64),
        (lambda w: QuantizedEmbedding(rows_of(w, 4)), 0.5),
        (
            lambda w: DynamicLinear(
                round_without_overflow(w, per_channel=True), None, per_channel=True
            ),
            1.0,
        ),
    ],
)
def test_files_are_as_small_as_the_layer_says_frozen_or_not(
    build: Callable[[Tensor], StoredLayer], bytes_each: float, freeze: bool
) -> None:
    weight = torch.randn(512, 512)
    layer = build(weight)
    assert layer.stored_bytes() == pytest.approx(weight.numel() * bytes_each, rel=0.04)
    assert file_size(layer, freeze=freeze) == pytest.approx(layer.stored_bytes(), abs=16_000)


def test_a_copy_of_a_layer_is_one_of_its_own() -> None:
    layer = DynamicLinear(
        round_without_overflow(torch.randn(8, 8), per_channel=True), None, per_channel=True
    )
    x = torch.randn(2, 8)
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))
