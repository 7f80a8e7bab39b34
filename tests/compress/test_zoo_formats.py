"""The zoo in every format: each file, loaded afresh, answers as the original does."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.jit._fuser import optimized_execution

from compress.errors import NothingToCompress
from compress.export.torchscript import export_torchscript
from compress.lift import Lifted, lift
from compress.lift.compare import relative_error
from compress.measure.fidelity import FidelityMeter
from compress.quantize import Quantized, quantize_static, to_float32, to_half
from compress.spec import PtqConfig
from compress.structure import map_tensors
from tests.compress.zoo.entry import Entry, How, export, load
from tests.compress.zoo.registry import ENTRIES

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # the models' own, in hundreds
]

TOLERANCE = 1e-5
HALF_FLOOR_DB = 50.0
INT8_FLOOR_DB = 15.0
"""Weights are random: nothing in these nets makes up for rounding, as training does."""

# trained, and the only one with outliers in its activations, which leave few of 7 bits to the rest
FLOORS_DB = {"minilm": 3.0}

# What has no int8 file: words of the error.
NOTHING = {"seq2seq_until_end": "encoder: LSTM has no static int8 kernel"}


@dataclass(frozen=True)
class Case:
    """An exported model, lifted."""

    entry: Entry
    how: How
    file: bytes
    lifted: Lifted

    def inputs(self) -> list[list[Any]]:
        return [self.entry.inputs(False, *size) for size in self.entry.sizes(self.how)]

    def answers(self, quantized: Quantized, folder: Path, *, freeze: bool) -> list[tuple[Any, Any]]:
        """Outputs of the original and of the written file, both loaded afresh."""
        (folder / "original.pt").write_bytes(self.file)
        target = folder / "compressed.pt"
        export_torchscript(
            quantized.graph_module,
            folder / "original.pt",
            target,
            [copied(self.entry.example())],
            freeze=freeze,
        )
        written = target.read_bytes()
        original, compressed = load(self.file), load(written)
        answers = []
        for given in self.inputs():
            if self.entry.stateful:
                original, compressed = load(self.file), load(written)
            answers.append((call(original, given), call(compressed, given)))
        return answers


def call(module: torch.jit.ScriptModule, given: list[Any]) -> Any:
    # without the executor's profiling, which makes first calls slow
    with torch.no_grad(), optimized_execution(False):
        return module(*copied(given))


def copied(given: list[Any]) -> list[Any]:
    copies: list[Any] = map_tensors(given, Tensor.clone)
    return copies


def sqnr_db(pairs: list[tuple[Any, Any]]) -> float:
    """The lowest of all inputs."""
    found = []
    for wanted, answer in pairs:
        meter = FidelityMeter()
        meter.add(wanted, answer)
        found.append(meter.report().sqnr_db)
    return min(found)


@pytest.fixture(scope="module", params=list(ENTRIES))
def case(request: pytest.FixtureRequest) -> Case:
    entry = ENTRIES[request.param]
    how = entry.hows[-1]
    file = export(entry.model(), entry.example(), how)
    return Case(entry, how, file, lift(load(file), entry.example(), verify=False))


def test_float32_files_compute_the_same(case: Case, tmp_path: Path) -> None:
    before = copy.deepcopy(case.lifted.graph_module.state_dict())
    answers = case.answers(to_float32(case.lifted.graph_module), tmp_path, freeze=False)
    for wanted, answer in answers:
        assert relative_error(answer, wanted) <= TOLERANCE
    after = case.lifted.graph_module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


def test_float16_files_come_close(case: Case, tmp_path: Path) -> None:
    halved = to_half(case.lifted.graph_module)
    assert all(layer.precision == "fp16" or layer.reason for layer in halved.layers)
    assert sqnr_db(case.answers(halved, tmp_path, freeze=False)) > HALF_FLOOR_DB


def test_int8_files_come_close(case: Case, tmp_path: Path) -> None:
    if case.entry.name in NOTHING:
        with pytest.raises(NothingToCompress, match=NOTHING[case.entry.name]):
            quantize(case)
        return
    quantized = quantize(case)
    assert any(layer.precision == "int8" for layer in quantized.layers)
    assert all(layer.precision == "int8" or layer.reason for layer in quantized.layers)
    assert sqnr_db(case.answers(quantized, tmp_path, freeze=True)) > FLOORS_DB.get(
        case.entry.name, INT8_FLOOR_DB
    )


def quantize(case: Case) -> Quantized:
    return quantize_static(
        case.lifted.graph_module,
        copied(case.entry.example()),
        map(copied, case.inputs()),
        PtqConfig(observer="minmax"),  # histograms take most of the time, and are tested elsewhere
        full_range=False,
    )
