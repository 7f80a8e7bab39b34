from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from starlette.testclient import TestClient

from app.jobs.tables import Job
from app.models.tables import Model
from app.state import Services
from tests.app import samples
from tests.app.conftest import Key
from tests.app.jobs.conftest import body, change, data, model
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures


def limit(client: TestClient, key: Key, **limits: int | None) -> None:
    answer = client.patch(f"/v1/projects/{key.project_id}", json={"limits": limits})
    assert answer.status_code == 200, answer.text


def post_model(client: TestClient) -> Any:
    return client.post(
        "/v1/models", files={"file": ("f", samples.traced_cnn())}, data={"name": "m"}
    )


def begin(client: TestClient, size_bytes: int) -> Any:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": str(size_bytes)}
    return client.post("/v1/uploads", headers=headers)


def test_a_full_project_takes_nothing_until_something_is_deleted(
    client: TestClient, key: Key
) -> None:
    size_bytes = len(samples.traced_cnn())
    limit(client, key, stored_bytes=2 * size_bytes)
    made = [post_model(client) for _ in range(3)]
    assert [each.status_code for each in made] == [201, 201, 409]
    assert made[2].json()["code"] == "project_full"
    assert begin(client, 1).json()["code"] == "project_full"
    client.delete(f"/v1/models/{made[0].json()['id']}")
    assert post_model(client).status_code == 201
    limit(client, key, stored_bytes=None)
    assert post_model(client).status_code == 201


def test_a_refused_file_leaves_no_bytes(client: TestClient, key: Key, services: Services) -> None:
    limit(client, key, stored_bytes=10)
    assert post_model(client).status_code == 409
    assert samples.files_in(services.settings) == []


def test_an_upload_keeps_its_room_from_other_uploads_and_not_from_itself(
    client: TestClient, key: Key
) -> None:
    content = samples.traced_cnn()
    limit(client, key, stored_bytes=len(content) + 100)
    upload = begin(client, len(content)).json()
    assert begin(client, 101).json()["code"] == "project_full"
    assert begin(client, 100).status_code == 201
    headers = {
        "Tus-Resumable": "1.0.0", "Upload-Offset": "0",
        "Content-Type": "application/offset+octet-stream",
    }  # fmt: skip
    sent = client.patch(f"/v1/uploads/{upload['id']}", headers=headers, content=content)
    assert sent.status_code == 204
    answer = client.post("/v1/models", json={"upload_id": upload["id"], "name": "m"})
    assert answer.status_code == 201, answer.text


def test_jobs_are_counted_while_they_are_unfinished(
    client: TestClient, key: Key, services: Services, body: dict[str, Any]
) -> None:
    limit(client, key, unfinished_jobs=2)
    jobs = [client.post("/v1/jobs", json=body) for _ in range(3)]
    assert [each.status_code for each in jobs] == [202, 202, 409]
    assert jobs[2].json()["code"] == "too_many_jobs"
    change(services, jobs[0].json()["id"], status="running")
    assert client.post("/v1/jobs", json=body).status_code == 409
    change(services, jobs[0].json()["id"], status="succeeded")
    assert client.post("/v1/jobs", json=body).status_code == 202
    assert client.post("/v1/preflight", json=body).status_code in (200, 202)


@pytest.mark.slow
@both_databases
@pytest.mark.parametrize("what", ["jobs", "models"])
def test_many_at_once_get_no_more_than_the_limit(
    api: FastAPI, client: TestClient, key: Key, services: Services, body: dict[str, Any], what: str
) -> None:
    size_bytes = len(samples.traced_cnn())
    used = client.get(f"/v1/projects/{key.project_id}").json()["usage"]["stored_bytes"]
    limit(client, key, unfinished_jobs=3, stored_bytes=used + 3 * size_bytes + 1)

    def make(_number: int) -> int:
        if what == "models":
            return int(post_model(client).status_code)
        return int(client.post("/v1/jobs", json=body).status_code)

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(make, range(12)))
    assert sorted(statuses) == sorted([202 if what == "jobs" else 201] * 3 + [409] * 9)
    table = Job if what == "jobs" else Model
    with services.database.read() as session:
        assert session.scalar(select(func.count(table.id))) == (3 if what == "jobs" else 4)
