"""What is stored of a job that trained, and what its result tells then."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from app.db import Database
from app.storage import LocalBlobStore
from workers.artifacts import StoredResult, store_result
from workers.heartbeat import Heartbeat
from workers.lease import Claim

RESULT: dict[str, Any] = {
    "artifacts": [{"name": "model.fp32.pt", "format": "torchscript", "precision": "fp32"}],
    "recommended": "model.fp32.pt",
    "training": {"epochs": 2, "curve": [{"epoch": 1}, {"epoch": 2}]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "attempt" / "out"
    out.mkdir(parents=True)
    for name in ("model.fp32.pt", "manifest.json", "report.html"):
        (out / name).write_text(name)
    return out.parent


def stored_of(
    result: dict[str, Any], folder: Path, blobs: LocalBlobStore, database: Database
) -> StoredResult:
    claim = Claim("job_a", "prj", "job", "distill", "cpu", {}, "mdl", 60, 1, 1)
    heartbeat = Heartbeat(database, claim, lease_s=30, heartbeat_s=5)
    return store_result(blobs, claim, result, folder, heartbeat)


def test_a_training_tells_where_its_curve_is_drawn(
    folder: Path, store: LocalBlobStore, database: Database
) -> None:
    stored = stored_of(RESULT, folder, store, database)
    ids = {row.name: row.id for row in stored.rows}
    assert stored.result["training"] == {
        **RESULT["training"], "curve_url": f"/v1/artifacts/{ids['report.html']}/content"
    }  # fmt: skip
    assert stored.result["recommended"] == ids["model.fp32.pt"]


def test_without_a_report_or_a_training_there_is_no_such_link(
    folder: Path, store: LocalBlobStore, database: Database
) -> None:
    bare = RESULT | {"training": None, "recommended": "report.html"}
    stored = stored_of(bare, folder, store, database)
    assert (stored.result["training"], stored.result["recommended"]) == (None, None)
    (folder / "out" / "report.html").unlink()
    assert "curve_url" not in stored_of(RESULT, folder, store, database).result["training"]
