"""Recurrent and temporal nets; and what is neither image nor sequence."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import nn

from tests.compress.zoo import others, published, recurrent, temporal
from tests.compress.zoo.dense_prediction import VAE
from tests.compress.zoo.entry import Entry
from tests.compress.zoo.inputs import draw, floats, row_lengths, seeded, tokens

sequence_net = partial(Entry, extent=12, other=9, full_extent=100, full_other=60)


def sized(kind: type[nn.Module], *small: int) -> Any:
    """Builds `kind` with these sizes in small, and by its defaults as published."""
    return lambda full: kind() if full else kind(*small)


def padded_tokens(full: bool, batch: int, extent: int) -> list[Any]:
    lengths = row_lengths(batch, extent)
    ids = draw(10000 if full else 100, [batch, extent], seeded(batch, extent))
    return [ids * (torch.arange(extent)[None, :] < lengths[:, None]), lengths]


def frames_and_state(full: bool, batch: int, extent: int) -> list[Any]:
    generator = seeded(batch, extent)
    mels, hidden, projected = (40, 512, 128) if full else (8, 16, 8)
    state = (
        torch.randn(2, batch, projected, generator=generator),
        torch.randn(2, batch, hidden, generator=generator),
    )
    return [torch.randn(batch, extent, mels, generator=generator), state]


def clicks(full: bool, batch: int, extent: int) -> list[Any]:
    """Dense features, and for each table a bag of `extent` indices."""
    generator = seeded(batch, extent)
    tables, rows = (8, 10000) if full else (3, 50)
    dense = torch.randn(batch, 13, generator=generator)
    return [dense, draw(rows, [batch, tables, extent], generator)]


def bags(full: bool, batch: int, extent: int) -> list[Any]:
    """`batch` bags, from 1 to `extent` tokens long."""
    lengths = torch.tensor([max(1, extent - 2 * row) for row in range(batch)])
    ids = draw(20000 if full else 100, [int(lengths.sum())], seeded(batch, extent))
    return [ids, lengths.cumsum(0) - lengths]


def graph(full: bool, batch: int, extent: int) -> list[Any]:
    """As many nodes as the batch says, times ten (a thousand); `extent` edges for each."""
    generator = seeded(batch, extent)
    nodes, features = (1000 * batch, 1433) if full else (10 * batch, 8)
    edges = torch.randint(0, nodes, (2, nodes * extent), generator=generator)
    return [torch.randn(nodes, features, generator=generator), edges]


def speech(full: bool, batch: int, extent: int) -> list[Any]:
    return [torch.randn(batch, extent, generator=seeded(batch, extent)) * 0.1, 16000]


ENTRIES = [
    sequence_net(
        name="lstm_tagger", build=sized(recurrent.LSTMTagger, 100, 8, 16, 5), inputs=tokens()
    ),
    sequence_net(
        name="gru_tagger", build=sized(recurrent.GRUTagger, 100, 8, 16, 5), inputs=tokens()
    ),
    sequence_net(
        name="packed_tagger",
        build=sized(recurrent.PackedTagger, 100, 8, 16, 5),
        inputs=padded_tokens,
    ),
    sequence_net(
        name="speech_lstm", build=sized(recurrent.SpeechLSTM, 8, 16, 8), inputs=frames_and_state
    ),
    sequence_net(
        name="rnn_classifier",
        build=sized(recurrent.RNNClassifier, 8, 16, 5),
        inputs=floats(("batch", "extent", 8), full=(("batch", "extent", 28),)),
    ),
    sequence_net(
        name="cell_loop",
        build=sized(recurrent.CellLoop, 8, 16),
        inputs=floats(("batch", "extent", 8), full=(("batch", "extent", 64),)),
        fixed=("trace",),
    ),
    sequence_net(
        name="seq2seq", build=sized(recurrent.Seq2Seq, 100, 8, 16, 4), inputs=tokens(full=8000)
    ),
    sequence_net(
        name="seq2seq_until_end",
        build=sized(recurrent.Seq2SeqUntilEnd, 100, 8, 16, 8),
        inputs=tokens(full=8000),
        hows=("script",),
        islands={"script": 1},
        in_islands=("decoder.",),
    ),
    Entry(
        name="tcn",
        build=sized(temporal.TCN, 4, 8, 3),
        inputs=floats(("batch", 4, "extent"), full=(("batch", 16, "extent"),)),
        extent=32,
        other=27,
        full_extent=400,
        full_other=300,
        hows=("trace",),  # parametrizations do not script
    ),
    Entry(
        name="wavenet",
        build=sized(temporal.WaveNet, 8, 8, 3, 32),
        inputs=tokens(32, 256),
        extent=32,
        other=27,
        full_extent=1000,
        full_other=800,
    ),
    Entry(
        name="keyword_spotter",
        build=sized(temporal.KeywordSpotter, 8, 32),
        inputs=floats(("batch", "extent")),
        extent=320,
        other=256,
        full_extent=16000,
        full_other=12000,
    ),
    Entry(
        name="silero_vad",
        build=lambda full: published.silero_vad(),
        inputs=speech,
        extent=512,
        other=None,
        full_extent=512,
        full_other=None,
        hows=("file",),
        islands={"file": 6},  # choices that hang on state; one holds the decoder's LSTM
        in_islands=("_model.decoder.rnn.",),
        unused=("_model_8k.",),
        stateful=True,
    ),
    Entry(
        name="pointnet",
        build=sized(others.PointNet, 8, 5),
        inputs=floats(("batch", 3, "extent")),
        extent=32,
        other=20,
        full_extent=1024,
        full_other=800,
    ),
    Entry(
        name="dlrm",
        build=sized(others.DLRM, 3, 50, 8),
        inputs=clicks,
        extent=4,
        other=7,
        full_extent=10,
        full_other=20,
    ),
    Entry(
        name="offset_bag",
        build=sized(others.OffsetBag, 100, 8),
        inputs=bags,
        extent=8,
        other=5,
        full_extent=60,
        full_other=40,
    ),
    Entry(
        name="graph_net",
        build=sized(others.GraphNet, 8, 16),
        inputs=graph,
        extent=3,
        other=5,
        full_extent=4,
        full_other=6,
    ),
    Entry(
        name="vae",
        build=sized(VAE, 49, 16, 4),
        inputs=floats(("batch", 7, 7), full=(("batch", 28, 28),)),
        extent=1,
        other=None,
        full_extent=1,
        full_other=None,
    ),
]
