from __future__ import annotations

import time
from pathlib import Path

import pytest

from app.datasets.scan import scan_dataset
from app.errors import Unprocessable
from tests.corpus.case import Case
from tests.corpus.datasets import CASES


@pytest.mark.parametrize("case", CASES, ids=str)
def test_each_attack_is_refused_with_its_code_within_a_second(case: Case, tmp_path: Path) -> None:
    path = tmp_path / "data"
    path.write_bytes(case.build())
    began = time.thread_time()
    with pytest.raises(Unprocessable) as refused:
        scan_dataset(path, 2**26)
    seconds = time.thread_time() - began
    assert refused.value.code == case.code, refused.value.detail
    assert str(tmp_path) not in refused.value.detail
    assert seconds < 1
