from __future__ import annotations

import io
import time
from pathlib import Path

import pytest
import torch

from app.errors import Unprocessable
from app.models.scan import REFUSALS, scan_model
from tests.corpus import archives, code, pickles
from tests.corpus.case import Case, model

CASES = [*archives.CASES, *pickles.CASES, *code.CASES]


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_attack_is_refused_with_its_code_within_a_second(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(case.build())
    began = time.thread_time()
    with pytest.raises(Unprocessable) as refused:
        scan_model(path)
    seconds = time.thread_time() - began
    assert refused.value.code == case.code, refused.value.detail
    assert case.code in REFUSALS
    assert str(tmp_path) not in refused.value.detail
    assert len(refused.value.detail) < 1000
    assert seconds < 1


def test_what_the_attacks_are_built_from_is_taken_and_runs(tmp_path: Path) -> None:
    path = tmp_path / "m.pt"
    path.write_bytes(model())
    assert scan_model(path).operators == {"aten::relu": 1}
    net = torch.jit.load(io.BytesIO(path.read_bytes()))
    assert net(torch.tensor([-1.0, 2.0])).tolist() == [0, 2]


def test_every_code_is_met() -> None:
    assert {case.code for case in CASES} == set(REFUSALS)
