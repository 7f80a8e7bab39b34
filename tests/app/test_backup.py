from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import text
from starlette.testclient import TestClient

from app.admin import run
from app.backup import BackupError, back_up
from app.db import Database
from app.main import create_app
from app.settings import Settings
from app.state import Services
from app.storage import content_key
from tests.app import samples
from tests.app.conftest import Key, make_settings
from tests.app.jobs.conftest import body, data, model
from tests.databases import both_databases, temporary_database

__all__ = ["body", "data", "model"]  # fixtures


def put_back(folder: Path, key: Key, settings: Settings, answers: dict[str, Any]) -> None:
    """Restore into a service of its own and compare what it tells."""
    assert run(["restore", str(folder)], settings)["missing"] == []
    with TestClient(create_app(settings), headers=key.header) as client:
        for path, content in answers.items():
            answer = client.get(path)
            assert answer.status_code == 200
            assert answer.content == content, path


@pytest.mark.slow
@both_databases
def test_a_restored_backup_answers_as_the_service_did(
    client: TestClient,
    key: Key,
    settings: Settings,
    body: dict[str, Any],
    broker_url: str,
    tmp_path: Path,
    database_kind: str,
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    paths = [
        f"/v1/models/{body['model_id']}", f"/v1/models/{body['model_id']}/content",
        f"/v1/datasets/{body['calibration']['dataset_id']}/content", f"/v1/jobs/{job['id']}",
        "/v1/keys", "/v1/audit",
    ]  # fmt: skip
    answers = {path: client.get(path).content for path in paths}
    manifest = run(["backup", str(tmp_path / "backup")], settings)
    assert (manifest["files"], manifest["missing"]) == (2, [])
    client.delete(f"/v1/jobs/{job['id']}")
    client.post(f"/v1/jobs/{job['id']}/cancel")
    if database_kind == "postgresql":
        with temporary_database() as url:
            fresh = make_settings(tmp_path / "fresh", url, broker_url)
            put_back(tmp_path / "backup", key, fresh, answers)
        return
    fresh = make_settings(tmp_path / "fresh", f"sqlite:///{tmp_path}/fresh/t.db", broker_url)
    put_back(tmp_path / "backup", key, fresh, answers)
    with pytest.raises(BackupError, match="not empty"):
        run(["restore", str(tmp_path / "backup")], fresh)


@pytest.mark.slow
@both_databases
def test_a_backup_holds_every_file_that_its_database_names_while_others_come_and_go(
    client: TestClient, api: FastAPI, settings: Settings, tmp_path: Path
) -> None:
    stop = threading.Event()
    samples.upload(client, "datasets", samples.npz(input=samples.images()))

    def churn(seed: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            arrays = samples.images(2) + seed * 1000 + number
            made = samples.upload(client, "datasets", samples.npz(input=arrays))
            if number % 2:
                client.delete(f"/v1/datasets/{made['id']}")

    threads = [threading.Thread(target=churn, args=(seed,)) for seed in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(3):
            folder = tmp_path / f"backup{number}"
            assert back_up(settings, folder)["missing"] == []
            if "sqlite" in settings.database_url:
                named = _named(folder / "tersor.db")
                assert named
                assert all((folder / "blobs" / content_key(each)).is_file() for each in named)
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def _named(path: Path) -> list[str]:
    own = make_settings(path.parent, f"sqlite:///{path}", "")
    database = Database(own)
    with database.read() as session:
        found = [str(each) for each in session.scalars(text("SELECT sha256 FROM datasets"))]
    database.close()
    return found


def test_what_is_lost_is_said_and_hinders_nothing(
    client: TestClient, settings: Settings, services: Services, tmp_path: Path
) -> None:
    made = samples.upload(client, "models", samples.traced_cnn())
    services.store.delete(content_key(made["sha256"]))
    manifest = back_up(settings, tmp_path / "backup")
    assert manifest["missing"] == [content_key(made["sha256"])]


def test_a_folder_that_holds_something_or_is_no_backup_is_refused(
    client: TestClient, settings: Settings, tmp_path: Path
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(BackupError, match="not empty"):
        back_up(settings, tmp_path / "full")
    with pytest.raises(BackupError, match="no whole backup"):
        run(["restore", str(tmp_path / "full")], settings)


def test_a_damaged_file_is_found(
    client: TestClient, settings: Settings, broker_url: str, tmp_path: Path
) -> None:
    made = samples.upload(client, "models", samples.traced_cnn())
    back_up(settings, tmp_path / "backup")
    path = tmp_path / "backup" / "blobs" / content_key(made["sha256"])
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.unlink()
    path.write_bytes(content)
    fresh = make_settings(tmp_path / "fresh", f"sqlite:///{tmp_path}/fresh/t.db", broker_url)
    with pytest.raises(BackupError, match="damaged"):
        run(["restore", str(tmp_path / "backup")], fresh)
