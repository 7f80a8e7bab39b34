from __future__ import annotations

from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.models.scan import REFUSALS
from tests.corpus.mutations import mutations, scan


@pytest.mark.slow
def test_damaged_files_are_refused_with_a_code_or_are_sound(tmp_path: Path) -> None:
    """A seeded part of what `python -m tests.corpus.mutations` does to the scan and to a worker."""
    # so many, since what each damages hangs on names that torch counts up in a process
    codes = {scan(mutation, tmp_path / "f") for mutation in mutations(600)}
    assert "passed" in codes
    assert len(codes) > 8


@pytest.mark.parametrize("seed", range(3))
def test_the_service_answers_whatever_it_is_sent(client: TestClient, seed: int) -> None:
    for mutation in mutations(10, seed=100 + seed):
        kind = "models" if mutation.is_model else "datasets"
        answer = client.post(
            f"/v1/{kind}", files={"file": ("f", mutation.content)}, data={"name": "damaged"}
        )
        assert answer.status_code in (201, 422), answer.text
        if answer.status_code == 422 and mutation.is_model:
            assert answer.json()["code"] in REFUSALS
    assert client.get("/healthz").status_code == 200
