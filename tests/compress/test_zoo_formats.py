"""Kinds of models in every format: each file, loaded afresh, answers as the original does.

A sample: `benchmarks/zoo_formats.py` does the same with the whole zoo.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from compress.errors import ExportFailed
from compress.quantize import to_float32, to_half_computing
from tests.compress.zoo.entry import load
from tests.compress.zoo.formats import (
    NOT_IN_ONNX,
    Case,
    Kind,
    Outcome,
    breach,
    call,
    case_of,
    copied,
    kinds_of,
    lowest_sqnr_db,
    write,
)

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the models' own, in hundreds
]

# One of each family of operators, and everything that is refused.
SAMPLE = (
    "resnet18",  # residuals
    "mobilenet_v3",  # depthwise, hardswish, squeeze and excite
    "unet",  # transposed convolutions, sizes read and padded to
    "yolo",  # a head with several outputs, silu, concatenation
    "video_net",  # three dimensions
    "hf_swin",  # windows that are rolled, relative positions
    "hf_bert_sdpa",  # masks, fused attention
    "hf_gpt2_eager",  # a causal mask, its own layers, tied weights
    "hf_wav2vec2",  # grouped and weight-normalized Conv1d, group norm
    "transformer_encoder_norm_first",  # torch's own layers
    "lstm_tagger",
    "gru_tagger",
    "offset_bag",  # embedding bags
    "graph_net",  # scattering
    *NOT_IN_ONNX,
)


@pytest.fixture(scope="module", params=SAMPLE)
def case(request: pytest.FixtureRequest) -> Case:
    torch.set_num_threads(1)
    return case_of(request.param)


@pytest.mark.parametrize("place", range(5))
def test_files_keep_what_is_promised(case: Case, place: int, tmp_path: Path) -> None:
    kind = kinds_of(case.entry.name)[place]
    assert breach(case.entry.name, kind, write(case, kind, tmp_path)) is None


def test_computing_in_16_bits_stays_close_at_every_size(case: Case) -> None:
    islands = case.lifted.report.island_reasons
    half = to_half_computing(case.lifted.graph_module, copied(case.entry.example()), islands)
    for inputs in case.inputs():
        model = copy.deepcopy(half.graph_module)  # some remember what they were asked
        wanted = call(load(case.file), inputs)
        with torch.no_grad():
            answer = model(*copied(inputs))
        assert lowest_sqnr_db([(wanted, answer)]) > 45


def test_writing_leaves_the_lifted_graph_as_it_is(case: Case) -> None:
    before = copy.deepcopy(case.lifted.graph_module.state_dict())
    to_float32(case.lifted.graph_module)
    after = case.lifted.graph_module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize(
    ("name", "kind", "outcome"),
    [
        ("vae", ("torchscript", "fp32"), Outcome(max_relative_error=1e-4)),
        ("vae", ("torchscript", "fp16"), Outcome(sqnr_db=49.0, layers=1)),
        ("vae", ("torchscript", "int8"), Outcome(sqnr_db=14.0, layers=1)),
        ("vae", ("torchscript", "int8"), Outcome(sqnr_db=40.0)),
        ("vae", ("onnx", "int8"), Outcome(sqnr_db=40.0, layers=1, unexplained=("fc",))),
        ("vae", ("onnx", "int8"), Outcome(refusal=ExportFailed("no word for it"))),
        ("cell_loop", ("onnx", "int8"), Outcome(sqnr_db=40.0, layers=1)),
        ("cell_loop", ("onnx", "int8"), Outcome(refusal=ExportFailed("no word for it"))),
    ],
)
def test_broken_promises_are_noticed(name: str, kind: Kind, outcome: Outcome) -> None:
    assert breach(name, kind, outcome) is not None
