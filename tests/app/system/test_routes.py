from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import WorkerSeen
from app.main import create_app
from app.settings import BrokerSettings, Settings
from app.state import Services


def see_worker(services: Services, seconds_ago: float, **info: Any) -> None:
    with services.database.write() as session:
        session.merge(
            WorkerSeen(
                id="w1", queues=["cpu"], slots=2, info={"devices": ["cpu"], **info},
                started_at=utc_now(), seen_at=utc_now() - timedelta(seconds=seconds_ago),
            )
        )  # fmt: skip


def test_alive_without_a_key(client: TestClient) -> None:
    del client.headers["Authorization"]
    assert client.get("/healthz").json() == {"status": "ok"}


def test_ready_once_a_worker_is_there(client: TestClient, services: Services) -> None:
    see_worker(services, 1)
    del client.headers["Authorization"]
    answer = client.get("/readyz")
    assert answer.status_code == 200, answer.text
    assert answer.json()["ready"] is True
    assert set(answer.json()["checks"]) == {"database", "broker", "storage", "worker"}


@pytest.mark.parametrize("part", ["database", "broker", "storage", "worker"])
def test_the_part_that_fails_is_named(api: FastAPI, settings: Settings, part: str) -> None:
    if part == "broker":
        settings.__dict__["broker"] = BrokerSettings(
            url=f"redis+socket://{settings.data_dir}/nobody"
        )
        api = create_app(settings)
    with TestClient(api) as client:
        services: Services = api.state.services
        see_worker(services, 16 if part == "worker" else 1)
        if part == "storage":
            staging = settings.data_dir / "blobs" / "staging"
            staging.rmdir()
        if part == "database":
            with services.database.engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE projects RENAME TO gone")
        answer = client.get("/readyz")
    assert answer.status_code == 503
    assert answer.headers["retry-after"]
    checks = answer.json()["checks"]
    assert [name for name, check in checks.items() if not check["ok"]] == [part]
    assert str(settings.data_dir) not in answer.text


def test_system_tells_what_there_is(client: TestClient, services: Services) -> None:
    see_worker(services, 1, torch="2.13.0", sandbox={"rlimits": True})
    system = client.get("/v1/system").json()
    assert system["version"]
    assert system["devices"] == ["cpu"]
    assert system["workers"][0]["sandbox"] == {"rlimits": True}
    assert system["queues"]["cpu"] == {"queued": 0, "running": 0}
    assert system["limits"]["upload_bytes"] == 2**26
    see_worker(services, 60)
    assert client.get("/v1/system").json()["workers"] == []
