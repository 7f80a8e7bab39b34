from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from app import storage_gc
from app.admin import run
from app.settings import Settings
from app.state import Services
from app.storage import LocalBlobStore, content_key
from tests.app import samples
from tests.app.jobs.conftest import body, change, data, model
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures


def keys(services: Services) -> set[str]:
    return {file.key for file in services.store.list_files()}


@pytest.mark.slow
@both_databases
def test_only_what_belongs_to_nothing_goes_and_only_if_asked(
    client: TestClient, services: Services, body: dict[str, Any], tmp_path: Path
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    source = tmp_path / "x"
    source.write_bytes(b"left over")
    kept = keys(services)
    orphan = content_key(samples.sha256(b"left over"))
    for key in (orphan, "jobs/job_gone/1/m.pt", f"jobs/{job['id']}/1/m.pt"):
        services.store.put_file(source, key)
    report = storage_gc.look(services.database, services.store, young_s=0)
    # what an unfinished job has stored may be its result in a moment
    assert {file.key for file in report.garbage} == {orphan, "jobs/job_gone/1/m.pt"}
    assert report.garbage_bytes == 2 * len(b"left over")
    assert report.missing == ()
    assert keys(services) > kept
    storage_gc.remove(services.database, services.store, report.garbage)
    assert keys(services) == {*kept, f"jobs/{job['id']}/1/m.pt"}
    change(services, job["id"], status="failed")
    report = storage_gc.look(services.database, services.store, young_s=0)
    assert [file.key for file in report.garbage] == [f"jobs/{job['id']}/1/m.pt"]


def test_content_that_came_into_use_meanwhile_stays(
    client: TestClient, services: Services, tmp_path: Path
) -> None:
    content = samples.traced_cnn()
    source = tmp_path / "x"
    source.write_bytes(content)
    services.store.put_file(source, content_key(samples.sha256(content)))
    report = storage_gc.look(services.database, services.store, young_s=0)
    assert len(report.garbage) == 1
    made = samples.upload(client, "models", content)
    storage_gc.remove(services.database, services.store, report.garbage)
    answer = client.get(f"/v1/models/{made['id']}/content")
    assert answer.status_code == 200
    assert len(answer.content) == made["size_bytes"]


def test_the_command_shows_first_and_leaves_young_files_alone(
    client: TestClient, services: Services, settings: Settings, tmp_path: Path
) -> None:
    source = tmp_path / "x"
    source.write_bytes(b"young")
    services.store.put_file(source, "jobs/job_gone/1/m.pt")
    assert run(["gc"], settings)["garbage"] == []
    made = samples.upload(client, "models", samples.traced_cnn())
    assert isinstance(services.store, LocalBlobStore)
    services.store.delete(content_key(made["sha256"]))
    report = run(["gc", "--delete"], settings)
    assert report["missing"] == [content_key(made["sha256"])]
    assert (report["garbage"], report["bytes"]) == ([], 0)
    assert keys(services) == {"jobs/job_gone/1/m.pt"}
