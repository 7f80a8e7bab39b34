"""Preflight with and without a worker."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import Job
from app.settings import Settings
from app.state import Services
from tests.app.jobs.conftest import change
from tests.databases import both_databases


@pytest.mark.slow
@both_databases
def test_a_preflight_answers_later_where_no_worker_comes(
    client: TestClient, body: dict[str, Any], services: Services, broker: Redis
) -> None:
    answer = client.post("/v1/preflight", json=body)
    assert answer.status_code == 202
    view = answer.json()
    assert answer.headers["location"] == view["urls"]["self"]
    assert (view["finished"], view["ok"], view["queue_length"]) == (False, None, 0)
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get(f"/v1/jobs/{view['id']}").status_code == 404
    error = {"code": "shape_mismatch", "message": "too wide", "stage": "load", "retryable": False}
    change(services, view["id"], status="failed", error=error, finished_at=utc_now())
    done = client.get(view["urls"]["self"])
    assert done.status_code == 200
    assert done.json()["ok"] is False
    assert done.json()["error"] == {"code": "shape_mismatch", "message": "too wide"}


def test_a_preflight_answers_at_once_when_the_worker_is_quick(
    client: TestClient, body: dict[str, Any], services: Services, settings: Settings
) -> None:
    settings.limits.preflight_wait_s = 20
    client.post("/v1/jobs", json=body)

    def work() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with services.database.read() as session:
                found = session.query(Job.id).filter_by(queue="inspect").first()
            if found is not None:
                change(services, found[0], status="running")
                change(
                    services, found[0], status="succeeded", result={"layers": []},
                    finished_at=utc_now(),
                )  # fmt: skip
                return
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    answer = client.post("/v1/preflight", json=body)
    worker.join()
    assert answer.status_code == 200
    assert answer.json()["ok"] is True
    assert answer.json()["result"] == {"layers": []}
    assert answer.json()["queue_length"] == 1
