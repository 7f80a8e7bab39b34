"""`Prefer: wait` on a job."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import JobEvent
from app.state import Services
from tests.app.jobs.conftest import change
from tests.databases import both_databases

pytestmark = pytest.mark.slow


@both_databases
def test_waiting_ends_when_the_job_changes(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    timer = threading.Timer(0.4, change, (services, job["id"]), {"status": "running"})
    timer.start()
    began_s = time.monotonic()
    answer = client.get(job["urls"]["self"], headers={"Prefer": "wait=20"})
    assert time.monotonic() - began_s < 5
    timer.join()
    assert answer.json()["status"] == "running"
    assert answer.headers["preference-applied"] == "wait=20"


def test_waiting_ends_when_time_is_up(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    began_s = time.monotonic()
    answer = client.get(job["urls"]["self"], headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began_s < 5
    assert answer.json()["status"] == "queued"
    tag = answer.headers["etag"]
    headers = {"Prefer": "wait=1", "If-None-Match": tag}
    assert client.get(job["urls"]["self"], headers=headers).status_code == 304


def test_who_knows_an_older_version_does_not_wait(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    answer = client.post("/v1/jobs", json=body)
    change(services, answer.json()["id"], status="running")
    headers = {"Prefer": "wait=20", "If-None-Match": answer.headers["etag"]}
    began_s = time.monotonic()
    fresh = client.get(answer.json()["urls"]["self"], headers=headers)
    assert time.monotonic() - began_s < 3
    assert (fresh.status_code, fresh.json()["status"]) == (200, "running")


def test_an_event_is_no_change_of_the_job_but_one_of_its_events(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    paths = (job["urls"]["self"], job["urls"]["events"])
    seen, heard = (client.get(path) for path in paths)
    with services.database.write() as session:
        session.add(
            JobEvent(job_id=job["id"], created_at=utc_now(), level="info", type="log", message="hm")
        )
    known, known_events = ({"If-None-Match": each.headers["etag"]} for each in (seen, heard))
    waited = client.get(paths[0], headers={**known, "Prefer": "wait=1"})
    assert waited.status_code == 304
    assert client.get(paths[0]).content == seen.content
    assert client.get(paths[1], headers=known_events).json()["data"][-1]["message"] == "hm"


def test_a_finished_job_answers_at_once(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    client.post(job["urls"]["cancel"])
    began_s = time.monotonic()
    client.get(job["urls"]["self"], headers={"Prefer": "wait=20"})
    assert time.monotonic() - began_s < 3
