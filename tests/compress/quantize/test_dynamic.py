"""Dynamic int8: what becomes int8, how close it stays, and that it says what was lost where."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import InvalidSpec, NothingToCompress
from compress.lift import lift
from compress.quantize.drafting import Quantized
from compress.quantize.dynamic import quantize_dynamic, row_gains_db
from compress.quantize.modules import DynamicLinear
from compress.result import Layer
from compress.spec import PtqConfig
from tests.compress import zoo
from tests.compress.zoo.entry import Entry, export, load
from tests.compress.zoo.formats import Case, Kind, breach, case_of, write
from tests.compress.zoo.inputs import tokens
from tests.compress.zoo.recurrent import LSTMTagger


class Tagger(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.lstm = nn.LSTM(16, 24, batch_first=True)
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(self.norm(self.lstm(self.embedding(ids))[0]))


def traced(model: nn.Module) -> fx.GraphModule:
    return fx.symbolic_trace(model.eval())


def quantize(model: nn.Module, inputs: list[Any], **settings: Any) -> Quantized:
    return quantize_dynamic(
        traced(model), PtqConfig(mode="dynamic", **settings), example_inputs=inputs,
        probes=[inputs],
    )  # fmt: skip


def by_name(quantized: Quantized) -> dict[str, Layer]:
    return {layer.name: layer for layer in quantized.layers}


@pytest.fixture
def ids() -> Tensor:
    torch.manual_seed(0)
    return torch.randint(0, 50, (4, 9))


def test_every_layer_is_in_the_table_with_its_error_and_true_bytes(ids: Tensor) -> None:
    torch.manual_seed(0)
    model = Tagger()
    quantized = quantize(model, [ids])
    table = by_name(quantized)
    assert {name: layer.precision for name, layer in table.items()} == {
        "embedding": "int8", "lstm": "int8", "norm": "fp32", "head": "int8",
    }  # fmt: skip
    assert all(layer.sqnr_db is not None and layer.sqnr_db > 30 for layer in table.values())
    assert table["norm"].reason
    assert table["embedding"].size_bytes == (50 * 16 * 4, 50 * (16 + 8))
    # int8, and of each row a double, a long and a float bias, which layers of one range store
    assert table["head"].size_bytes == ((24 * 5 + 5) * 4, 24 * 5 + 5 * (8 + 8 + 4))
    with torch.no_grad():
        wanted, answer = model(ids), quantized.graph_module(ids)
    assert float((answer - wanted).abs().max()) < 0.03 * float(wanted.abs().max())


def test_the_graph_that_is_given_stays_as_it_is(ids: Tensor) -> None:
    graph = traced(Tagger())
    before = {name: value.clone() for name, value in graph.state_dict().items()}
    quantize_dynamic(graph, PtqConfig(mode="dynamic"), example_inputs=[ids], probes=[ids[None]])
    assert isinstance(graph.get_submodule("head"), nn.Linear)
    assert all(torch.equal(value, before[name]) for name, value in graph.state_dict().items())


def test_rows_of_unlike_size_are_each_scaled_by_themselves() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 16))
    even, uneven = torch.rand(64, 32), torch.randn(64, 32)
    uneven[3] *= 100
    assert not quantize(model, [even]).graph_module.get_submodule("0").by_row
    layer = quantize(model, [uneven]).graph_module.get_submodule("0")
    assert isinstance(layer, DynamicLinear)
    assert layer.by_row
    with torch.no_grad():
        wanted, others = model(uneven), torch.arange(64) != 3
        assert float((layer(uneven) - wanted)[others].abs().max()) < 0.05
        # what stands beside a row in the batch does not matter to it
        assert torch.equal(layer(uneven)[others], layer(uneven[others]))
        assert torch.equal(layer(torch.zeros(1, 32)), layer.bias()[None])


def test_the_gain_from_rows_is_that_of_the_noise_measured() -> None:
    torch.manual_seed(0)
    graph = traced(nn.Sequential(nn.Linear(256, 8)))
    x = torch.randn(128, 256) * torch.logspace(-1, 1, 128)[:, None]

    def noise(by_row: bool) -> float:
        scale = x.abs().amax(1, keepdim=True) if by_row else torch.ones(1)
        step = (x / scale).max() - (x / scale).min()
        rounded = ((x / scale) / (step / 255)).round() * (step / 255) * scale
        return float((rounded - x).square().mean())

    gains = row_gains_db(graph, [[x]])
    measured = 10 * torch.log10(torch.tensor(noise(False) / noise(True)))
    assert gains[graph.get_submodule("0")] == pytest.approx(float(measured), abs=0.5)


def test_overrides_choose_the_precision_of_layers(ids: Tensor) -> None:
    overrides = {"lstm": "fp16", "head": "bf16", "emb*": "fp32"}
    with pytest.raises(NothingToCompress, match="override 'emb\\*' keeps it fp32"):
        quantize(Tagger(), [ids], overrides=overrides)
    table = by_name(quantize(Tagger(), [ids], overrides=overrides | {"embedding": "int8"}))
    assert {name: layer.precision for name, layer in table.items()} == {
        "embedding": "int8", "lstm": "fp16", "norm": "fp32", "head": "bf16",
    }  # fmt: skip
    assert table["lstm"].size_bytes[1] * 2 == table["lstm"].size_bytes[0]
    assert table["lstm"].sqnr_db > table["head"].sqnr_db > 30
    with pytest.raises(InvalidSpec, match="matches no layer"):
        quantize(Tagger(), [ids], overrides={"tail": "fp16"})


def test_the_table_shows_which_layer_breaks_and_half_precision_mends_it(ids: Tensor) -> None:
    torch.manual_seed(0)
    model = Tagger()
    with torch.no_grad():
        model.lstm.weight_ih_l0[:, 0] *= 300  # of a channel that is always small
        model.embedding.weight[:, 0] /= 300
    kept = {"embedding": "fp32"}
    broken = by_name(quantize(model, [ids], granularity="per_tensor", overrides=kept))
    assert broken["embedding"].sqnr_db > 100 > 15 > broken["lstm"].sqnr_db
    kept |= {"lstm": "fp16"}
    mended = by_name(quantize(model, [ids], granularity="per_tensor", overrides=kept))
    assert mended["lstm"].sqnr_db > broken["lstm"].sqnr_db + 30


def test_convolutions_stay_float_unless_an_override_says_otherwise() -> None:
    torch.manual_seed(0)
    model, image = zoo.small_cnn(), torch.randn(2, 1, 8, 8)
    table = by_name(quantize(model, [image]))
    assert table["conv1"].precision == "fp32"
    assert "stays float" in table["conv1"].reason
    assert table["fc1"].precision == "int8"
    assert "conv1" in table  # its BatchNorm is folded into it
    assert not any(layer.type.startswith("BatchNorm") for layer in table.values())
    table = by_name(quantize(model, [image], overrides={"conv1": "int8"}))
    assert table["conv1"].precision == "int8"
    assert "computes in float" in table["conv1"].reason
    with pytest.raises(NothingToCompress, match="static"):
        quantize(nn.Sequential(nn.Conv2d(1, 2, 3)), [image])


def test_smoothquant_helps_where_channels_behind_a_norm_are_outliers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 32))
    with torch.no_grad():
        model[0].weight[5] *= 100
        model[1].weight[:, 5] /= 100
    x = torch.randn(64, 64)
    plain = by_name(quantize(model, [x]))["1"].sqnr_db
    assert by_name(quantize(model, [x], smoothquant=True))["1"].sqnr_db > plain + 10


def test_weights_that_a_graph_reads_by_themselves_stay_float() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.fc = nn.Embedding(50, 16), nn.Linear(16, 16)

        def forward(self, ids: Tensor) -> Tensor:
            return F.linear(self.fc(self.table(ids)), self.table.weight)

    model, ids = Tied(), torch.randint(0, 50, (2, 5))
    quantized = quantize(model, [ids])
    table = by_name(quantized)
    assert table["table"].reason == "its weight is also read by itself"
    assert table["fc"].precision == "int8"
    with torch.no_grad():
        assert torch.allclose(quantized.graph_module(ids), model(ids), atol=0.1)


def test_the_file_of_a_tagger_is_small_and_keeps_its_sizes_free(tmp_path: Path) -> None:
    entry = Entry(
        name="tagger", build=lambda _: LSTMTagger(100, 128, 128, 5), inputs=tokens(), extent=12,
        other=9, full_extent=12, full_other=9,
    )  # fmt: skip
    file = export(entry.model(), entry.example(), "script")
    case = Case(entry, "script", file, lift(load(file), entry.example(), verify=False))
    outcome = write(case, ("torchscript", "dynamic"), tmp_path)
    target = tmp_path / "dynamic.pt"
    assert target.stat().st_size < 0.3 * len(file)
    whole = sum(layer.size_bytes[1] for layer in case.compressed("dynamic").layers)
    assert abs(target.stat().st_size - whole) < 25_000
    assert outcome.sqnr_db > 25.0


# Kinds of sequences that tests of all formats leave out, and the one that is trained.
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name", ["minilm", "hf_t5_encoder", "hf_gpt2_sdpa", "seq2seq", "rnn_classifier", "dlrm"]
)
def test_sequences_come_close(name: str, tmp_path: Path) -> None:
    kind: Kind = ("torchscript", "dynamic")
    assert breach(name, kind, write(case_of(name), kind, tmp_path)) is None
