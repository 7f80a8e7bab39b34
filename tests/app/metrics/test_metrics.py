from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from fastapi import FastAPI
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.repository import delete_jobs
from app.jobs.tables import Job, JobEvent
from app.metrics.tally import tally_jobs
from app.settings import Settings
from app.state import Services
from tests.app import samples
from tests.app.conftest import make_key
from tests.app.jobs.conftest import body, change, data, model
from tests.app.system.test_routes import see_worker
from tests.databases import both_databases
from tests.workers.rows import add_job

__all__ = ["body", "data", "model"]  # fixtures


def read(client: TestClient) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    answer = client.get("/metrics")
    assert answer.status_code == 200, answer.text
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


def at(name: str, **labels: str) -> tuple[str, tuple[tuple[str, str], ...]]:
    return name, tuple(sorted(labels.items()))


def test_requests_are_counted_by_route_and_status(client: TestClient) -> None:
    made = samples.upload(client, "models", samples.traced_cnn())
    client.get(f"/v1/models/{made['id']}")
    client.head(f"/v1/models/{made['id']}")
    client.get("/v1/models/mdl_x")
    client.get("/v1/nowhere")
    client.request("BREW", "/v1/models")
    client.post("/v1/jobs", content=b"{", headers={"Content-Type": "application/json"})
    seen = read(client)
    name, one = "tersor_http_requests_total", "/v1/models/{model_id}"
    assert seen[at(name, method="GET", route=one, status="200")] == 1
    assert seen[at(name, method="HEAD", route=one, status="200")] == 1
    assert seen[at(name, method="GET", route=one, status="404")] == 1
    assert seen[at(name, method="POST", route="/v1/jobs", status="400")] == 1
    assert seen[at(name, method="GET", route="unmatched", status="404")] == 1
    assert [key for key in seen if ("method", "other") in key[1] and key[0] == name]
    assert seen[at("tersor_http_request_seconds_count", method="GET", route=one)] == 2
    assert seen[at("tersor_http_requests_in_flight")] == 1  # this one
    assert made["id"] not in str(seen)
    assert "BREW" not in str(seen)


def test_the_queue_its_age_workers_and_walls(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    see_worker(services, 1, sandbox={"landlock": True, "seccomp": False})
    job = client.post("/v1/jobs", json=body).json()
    client.post("/v1/jobs", json=body)
    change(services, job["id"], created_at=utc_now() - timedelta(seconds=90))
    seen = read(client)
    assert seen[at("tersor_jobs", queue="cpu", status="queued")] == 2
    assert 90 <= seen[at("tersor_queue_oldest_seconds", queue="cpu")] < 120
    assert seen[at("tersor_queue_oldest_seconds", queue="gpu")] == 0
    assert seen[at("tersor_sandbox_layer", worker="w1", layer="landlock")] == 1
    assert seen[at("tersor_sandbox_layer", worker="w1", layer="seccomp")] == 0
    assert seen[at("tersor_worker_slots", worker="w1", queues="cpu")] == 2
    assert seen[at("tersor_database_up")] == 1
    assert seen[at("tersor_storage_free_bytes")] > 0


def finish(services: Services, **values: Any) -> str:
    now = utc_now()
    defaults = {
        "status": "succeeded", "created_at": now - timedelta(seconds=50),
        "started_at": now - timedelta(seconds=40), "finished_at": now,
    }  # fmt: skip
    return add_job(services.database, **(defaults | values))


def stage(services: Services, job_id: str, type: str, seconds_ago: float, **data: str) -> None:
    with services.database.write() as session:
        session.add(
            JobEvent(
                job_id=job_id, created_at=utc_now() - timedelta(seconds=seconds_ago),
                level="info", type=type, message="", data=data,
            )
        )  # fmt: skip


@both_databases
def test_finished_jobs_are_counted_once_by_method_stage_and_code(
    client: TestClient, services: Services
) -> None:
    done = finish(services, peak_memory_bytes=2**28)
    stage(services, done, "status", 40, status="running")
    stage(services, done, "stage", 36, stage="calibrate")
    stage(services, done, "metrics", 20)
    stage(services, done, "stage", 6, stage="made up by the child")
    stage(services, done, "status", 4, status="succeeded")
    finish(services, status="failed", error={"code": "out_of_memory"}, method="qat")
    finish(services, status="failed", error={"code": "<script>"}, method="qat")
    finish(services, status="cancelled", started_at=None)
    finish(services, kind="preflight")
    finish(services, status="running", finished_at=None)
    assert tally_jobs(services.database, at_once=3) == 3
    assert tally_jobs(services.database, at_once=9) == 2
    assert tally_jobs(services.database, at_once=9) == 0
    seen = read(client)
    name = "tersor_jobs_finished_total"
    assert seen[at(name, kind="job", method="ptq", status="succeeded")] == 1
    assert seen[at(name, kind="job", method="ptq", status="cancelled")] == 1
    assert seen[at(name, kind="job", method="qat", status="failed")] == 2
    assert seen[at(name, kind="preflight", method="ptq", status="succeeded")] == 1
    assert seen[at("tersor_job_failures_total", method="qat", code="out_of_memory")] == 1
    assert seen[at("tersor_job_failures_total", method="qat", code="other")] == 1
    assert seen[at("tersor_job_seconds_count", method="ptq")] == 1
    assert seen[at("tersor_job_seconds_sum", method="ptq")] == pytest.approx(40, abs=0.1)
    assert seen[at("tersor_job_seconds_bucket", method="ptq", le="30.0")] == 0
    assert seen[at("tersor_job_seconds_bucket", method="ptq", le="60.0")] == 1
    assert seen[at("tersor_job_seconds_bucket", method="ptq", le="+Inf")] == 1
    calibrate = seen[at("tersor_job_stage_seconds_sum", method="ptq", stage="calibrate")]
    assert calibrate == pytest.approx(30, abs=0.1)
    assert seen[at("tersor_job_stage_seconds_sum", method="ptq", stage="other")] == pytest.approx(
        2, abs=0.1
    )
    assert seen[at("tersor_job_memory_bytes_sum", method="ptq")] == 2**28
    assert seen[at("tersor_job_wait_seconds_sum", kind="job", method="qat")] == pytest.approx(
        20, abs=0.1
    )


@both_databases
def test_two_sweepers_count_a_job_once(client: TestClient, services: Services) -> None:
    for _ in range(40):
        finish(services)
    with ThreadPoolExecutor(4) as pool:
        counted = sum(pool.map(lambda _n: tally_jobs(services.database, 20), range(8)))
    assert counted == 40
    finished = at("tersor_jobs_finished_total", kind="job", method="ptq", status="succeeded")
    assert read(client)[finished] == 40


def test_counts_outlive_the_jobs(client: TestClient, services: Services) -> None:
    job_id = finish(services)
    tally_jobs(services.database, 9)
    with services.database.write() as session:
        session.delete(session.get_one(Job, job_id))
    assert at("tersor_jobs_finished_total", kind="job", method="ptq", status="succeeded") in read(
        client
    )


@both_databases
def test_a_job_that_is_deleted_before_a_sweep_is_counted_too(
    client: TestClient, services: Services
) -> None:
    early, late = finish(services), finish(services)
    name = at("tersor_jobs_finished_total", kind="job", method="ptq", status="succeeded")
    with services.database.write() as session:
        delete_jobs(session, [early])
    assert read(client)[name] == 1
    tally_jobs(services.database, 9)
    with services.database.write() as session:
        delete_jobs(session, [late])
    assert read(client)[name] == 2


def test_only_admins_read_them_unless_the_setting_says_otherwise(
    client: TestClient, api: FastAPI, settings: Settings, services: Services
) -> None:
    header = make_key(settings, "default", ("read", "write")).header
    assert client.get("/metrics", headers=header).status_code == 403
    del client.headers["Authorization"]
    assert client.get("/metrics").status_code == 401
    settings.metrics = "open"
    assert client.get("/metrics").status_code == 200
    settings.metrics = "off"
    assert client.get("/metrics").status_code == 404


def test_without_its_database_a_process_still_tells_of_itself(
    client: TestClient, settings: Settings, services: Services
) -> None:
    settings.metrics = "open"
    with services.database.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE counters RENAME TO gone")
    seen = read(client)
    assert seen[at("tersor_database_up")] == 0
    assert at("process_resident_memory_bytes") in seen
    assert not [key for key in seen if key[0] == "tersor_jobs"]
