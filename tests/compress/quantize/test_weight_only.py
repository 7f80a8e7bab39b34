"""Weights as integers: what they cost in accuracy, and that the file is really that small."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from compress.errors import InvalidSpec, NothingToCompress
from compress.export.torchscript import export_torchscript
from compress.quantize import quantize_weight_only
from compress.quantize.drafting import Quantized
from compress.quantize.rounding import round_int4, round_int8, round_without_overflow
from compress.result import Layer
from compress.spec import PtqConfig
from tests.compress import zoo


class Mixed(nn.Module):
    """One layer of each kind; the output shares the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(500, 96)
        self.conv = nn.Conv1d(96, 96, 3, padding=1)
        self.up = nn.ConvTranspose1d(96, 64, 2, stride=2)
        self.gru = nn.GRU(64, 96, batch_first=True)
        self.norm = nn.LayerNorm(96)
        self.out = nn.Linear(96, 500, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.up(self.conv(self.embedding(ids).transpose(1, 2)).relu())
        return self.out(self.norm(self.gru(x.transpose(1, 2))[0]))


SETTINGS: list[dict[str, Any]] = [
    {"granularity": "per_channel"},
    {"granularity": "per_tensor"},
    {"granularity": "per_group", "group_size": 32},
    {"weight_dtype": "int4", "granularity": "per_channel"},
    {"weight_dtype": "int4", "granularity": "per_tensor"},
    {"weight_dtype": "int4", "granularity": "per_group", "group_size": 32},
]


def quantize(model: nn.Module, inputs: list[Any], **settings: Any) -> Quantized:
    config = PtqConfig(mode="weight_only", **settings)
    return quantize_weight_only(fx.symbolic_trace(model.eval()), config, probes=[inputs])


def by_name(quantized: Quantized) -> dict[str, Layer]:
    return {layer.name: layer for layer in quantized.layers}


def mean_error(rounded: Tensor, rows: Tensor) -> float:
    return float((rounded - rows).square().mean())


@pytest.mark.slow
@pytest.mark.parametrize("settings", SETTINGS, ids=lambda s: "-".join(map(str, s.values())))
@pytest.mark.parametrize("freeze", [True, False])
def test_files_of_every_layout_are_as_small_as_their_tables_say_and_load_again(
    settings: dict[str, Any], freeze: bool, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    model, ids = Mixed().eval(), torch.randint(0, 500, (2, 7))
    torch.jit.trace(model, (ids,)).save(str(tmp_path / "original.pt"))
    quantized = quantize(model, [ids], **settings)
    wanted = "int4" if settings.get("weight_dtype") == "int4" else "int8"
    table = by_name(quantized)
    assert {name: layer.precision for name, layer in table.items()} == {
        "embedding": wanted, "conv": "int8", "up": "int8", "gru": wanted, "norm": "fp32",
        "out": wanted,
    }  # fmt: skip
    assert all(layer.sqnr_db is not None for layer in table.values())
    target = tmp_path / "small.pt"
    more = torch.randint(0, 500, (5, 11))
    export_torchscript(
        quantized.graph_module, tmp_path / "original.pt", target, [[ids], [more]], freeze=freeze
    )
    told = sum(layer.size_bytes[1] for layer in quantized.layers)
    if settings["granularity"] != "per_tensor":  # then rows looked up and rows of products differ
        told -= table["out"].size_bytes[1]  # it shares its weight
    assert told < target.stat().st_size < told + 25_000
    with torch.no_grad():
        loaded = torch.jit.load(str(target))
        noise = loaded(more) - model(more)
        sqnr = 10 * torch.log10(model(more).square().sum() / noise.square().sum())
    assert sqnr > (12 if wanted == "int4" else 30)


def test_a_group_of_its_own_scale_keeps_what_one_scale_would_lose() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 16))
    with torch.no_grad():
        model[0].weight[:, :32] *= 50
    x = torch.randn(8, 128)
    x[:, :32] = 0
    for bits in ("int8", "int4"):
        grouped = quantize(model, [x], weight_dtype=bits, granularity="per_group", group_size=32)
        whole = quantize(model, [x], weight_dtype=bits)
        assert by_name(grouped)["0"].sqnr_db > by_name(whole)["0"].sqnr_db + 10


def test_overrides_and_what_has_no_weights_to_store() -> None:
    torch.manual_seed(0)
    model, image = zoo.small_cnn(), torch.randn(2, 1, 8, 8)
    overrides = {"fc*": "int8", "fc2": "fp16", "conv1": "fp32"}
    table = by_name(quantize(model, [image], weight_dtype="int4", overrides=overrides))
    assert {name: layer.precision for name, layer in table.items()} == {
        "conv1": "fp32", "conv2": "int8", "fc1": "int8", "fc2": "fp16",
    }  # fmt: skip
    with pytest.raises(InvalidSpec, match="matches no layer"):
        quantize(model, [image], overrides={"fc9": "int8"})
    with pytest.raises(NothingToCompress, match="few weights"):
        quantize(nn.Sequential(nn.LayerNorm(8)), [torch.randn(2, 8)])


def test_four_bits_are_rounded_better_than_from_least_to_largest() -> None:
    torch.manual_seed(0)
    rows = torch.randn(64, 256)
    low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
    step = (high - low) / 15
    plain = ((rows - low) / step).round() * step + low
    rounded = round_int4(rows)
    assert mean_error(rounded.dequantize(), rows) < 0.9 * mean_error(plain, rows)
    assert int(rounded.values.max()) <= 15
    # so that the packed row, in float16, holds it exactly
    products = rounded.scale * rounded.zero_point
    assert torch.equal(products.half().float(), products)


def test_eight_bits_are_never_rounded_worse_than_by_the_largest() -> None:
    torch.manual_seed(0)
    rows = torch.randn(64, 256) ** 3
    step = rows.abs().amax(1, keepdim=True) / 127
    plain = (rows / step).round() * step
    assert mean_error(round_int8(rows).dequantize(), rows) <= mean_error(plain, rows)


@pytest.mark.parametrize("per_channel", [True, False])
def test_pairs_of_any_weights_stay_below_the_bound_and_close_to_the_float_ones(
    per_channel: bool,
) -> None:
    torch.manual_seed(0)
    for weight in (torch.randn(32, 65), torch.rand(32, 64) + 1, -torch.rand(32, 64), torch.eye(32)):
        rounded = round_without_overflow(weight, per_channel=per_channel)
        values = nn.functional.pad(rounded.values, (0, weight.shape[1] % 2)).int()
        for side in (values.clamp(min=0), -values.clamp(max=0)):
            assert int((side[:, 0::2] + side[:, 1::2]).max()) <= 128
        error = mean_error(rounded.dequantize(), weight)
        assert error < 2e-4 * float(weight.square().max())
        assert per_channel or len(set(rounded.scale.tolist())) == 1


def test_zeros_stay_zeros() -> None:
    rows = torch.zeros(2, 8)
    for rounded in (round_int8(rows), round_int4(rows)):
        assert torch.equal(rounded.dequantize(), rows)
