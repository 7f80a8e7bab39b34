from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from httpx import Response
from sqlalchemy import func, select, update
from starlette.testclient import TestClient

from app.auth.repository import derive_token
from app.datasets.tables import Dataset
from app.db import utc_now
from app.idempotency.repository import KEPT_S, forget_answers
from app.idempotency.tables import FirstAnswer
from app.jobs.tables import Job
from app.models.tables import Model
from app.settings import Settings
from app.state import Services
from app.uploads.tables import PartialUpload
from tests.app import samples
from tests.app.conftest import Key, make_key
from tests.app.jobs.conftest import body, change, data, model
from tests.app.limits.test_quota import limit
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures

KEY = {"Idempotency-Key": "8e03978e-40d5-43dd-bc93-6894a57f9324"}
TUS = {"Tus-Resumable": "1.0.0"}


def post_model(client: TestClient, name: str = "m", **headers: str) -> Response:
    files = {"file": ("f", samples.traced_cnn())}
    return client.post("/v1/models", files=files, data={"name": name}, headers=headers)


def post_dataset(client: TestClient, name: str = "d", **headers: str) -> Response:
    files = {"file": ("f", samples.npz(input=samples.images()))}
    return client.post("/v1/datasets", files=files, data={"name": name}, headers=headers)


def begin_upload(client: TestClient, size_bytes: int = 3, **headers: str) -> Response:
    length = {"Upload-Length": str(size_bytes)}
    return client.post("/v1/uploads", headers={**TUS, **length, **headers})


def count(services: Services, table: Any) -> int:
    with services.database.read() as session:
        return session.scalar(select(func.count(table.id))) or 0


@pytest.mark.parametrize(
    ("post", "other", "table"),
    [(post_model, "n", Model), (post_dataset, "n", Dataset), (begin_upload, 4, PartialUpload)],
    ids=["models", "datasets", "uploads"],
)
def test_the_same_request_again_gets_the_first_answer(
    client: TestClient, services: Services, post: Any, other: Any, table: Any
) -> None:
    first = post(client, **KEY)
    again = post(client, **KEY)
    assert first.status_code == again.status_code == 201
    assert again.content == first.content
    for name in ("location", "etag"):
        assert again.headers[name] == first.headers[name]
    assert again.headers["idempotency-replayed"] == "true"
    assert "idempotency-replayed" not in first.headers
    refused = post(client, other, **KEY)
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")
    assert count(services, table) == 1
    assert post(client).json()["id"] != first.json()["id"]


@both_databases
def test_a_job_is_submitted_once_and_its_first_answer_stays(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    first = client.post("/v1/jobs", json=body, headers=KEY)
    assert first.json()["queue_position"] == 1
    change(services, first.json()["id"], status="succeeded")
    spelled = {**body, "seed": 0, "priority": 0}  # defaults, said aloud
    again = client.post("/v1/jobs", json=spelled, headers=KEY)
    assert (again.status_code, again.json()) == (202, first.json())
    client.delete(f"/v1/jobs/{first.json()['id']}")
    assert client.post("/v1/jobs", json=body, headers=KEY).json() == first.json()
    refused = client.post("/v1/jobs", json={**body, "seed": 1}, headers=KEY)
    assert refused.json()["code"] == "idempotency_conflict"
    assert count(services, Job) == 0


@pytest.mark.slow
@both_databases
@pytest.mark.parametrize("what", ["jobs", "models"])
def test_many_at_once_make_one(
    client: TestClient, key: Key, services: Services, body: dict[str, Any], what: str
) -> None:
    before = count(services, Model)
    limit(client, key, unfinished_jobs=1)  # the others must not hear of it

    def post(_number: int) -> Response:
        if what == "models":
            return post_model(client, **KEY)
        return client.post("/v1/jobs", json=body, headers=KEY)

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(post, range(16)))
    assert {answer.status_code for answer in answers} == {201 if what == "models" else 202}
    assert len({answer.content for answer in answers}) == 1
    made = count(services, Model) - before if what == "models" else count(services, Job)
    assert made == 1


def test_an_upload_becomes_a_model_once(client: TestClient, services: Services) -> None:
    content = samples.traced_cnn()
    upload = begin_upload(client, len(content)).json()
    piece = {**TUS, "Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
    client.patch(f"/v1/uploads/{upload['id']}", headers=piece, content=content)
    fields = {"upload_id": upload["id"], "name": "m"}
    first = client.post("/v1/models", json=fields, headers=KEY)
    assert first.status_code == 201
    # the upload is gone by now; without the key this is upload_not_found
    assert client.post("/v1/models", json=fields).status_code == 422
    assert client.post("/v1/models", json=fields, headers=KEY).json() == first.json()
    assert count(services, Model) == 1


def test_a_repeated_upload_is_not_written_to_again(client: TestClient) -> None:
    piece = {"Content-Type": "application/offset+octet-stream", "Upload-Length": "5"}
    first = client.post("/v1/uploads", headers={**TUS, **piece, **KEY}, content=b"abc")
    assert first.headers["upload-offset"] == "3"
    again = client.post("/v1/uploads", headers={**TUS, **piece, **KEY}, content=b"abc")
    assert again.headers["location"] == first.headers["location"]
    now = client.head(first.headers["location"], headers=TUS)
    assert now.headers["upload-offset"] == "3"


def test_what_was_refused_is_not_kept(client: TestClient, body: dict[str, Any]) -> None:
    wrong = {**body, "model_id": "mdl_" + "0" * 26}
    assert client.post("/v1/jobs", json=wrong, headers=KEY).status_code == 422
    assert client.post("/v1/jobs", json=body, headers=KEY).status_code == 202


def test_a_key_is_a_projects_own(client: TestClient, stranger: dict[str, str]) -> None:
    first = post_model(client, **KEY)
    other = post_model(client, **KEY, **stranger)
    assert other.status_code == 201
    assert other.json()["id"] != first.json()["id"]


@both_databases
def test_a_new_keys_secret_is_told_again_to_whoever_asked_and_is_stored_nowhere(
    client: TestClient, settings: Settings, services: Services
) -> None:
    body = {"name": "ci", "scopes": ["read"]}
    first = client.post("/v1/keys", json=body, headers=KEY)
    again = client.post("/v1/keys", json=body, headers=KEY)
    assert (again.status_code, again.content) == (201, first.content)
    assert again.headers["idempotency-replayed"] == "true"
    assert again.headers["cache-control"] == "no-store"
    secret = first.json()["key"]
    made = {"Authorization": f"Bearer {secret}"}
    assert client.get("/v1/models", headers=made).status_code == 200
    assert "salt" not in first.json()
    with services.database.read() as session:
        kept = session.scalars(select(FirstAnswer)).one()
        assert secret not in kept.body
    assert derive_token("tsr_guessed", json.loads(kept.body)["salt"]) != secret
    other = make_key(settings, "default").header  # of the same project, but not who asked
    refused = client.post("/v1/keys", json=body, headers={**KEY, **other})
    assert (refused.status_code, refused.json()["code"]) == (409, "idempotency_conflict")
    assert client.post("/v1/keys", json=body).json()["key"] != secret


@both_databases
def test_a_project_is_made_once(client: TestClient) -> None:
    body = {"name": "vision", "limits": {"unfinished_jobs": 2}}
    first = client.post("/v1/projects", json=body, headers=KEY)
    assert first.status_code == 201
    again = client.post("/v1/projects", json=body, headers=KEY)
    assert (again.status_code, again.json()) == (201, first.json())
    assert client.post("/v1/projects", json=body).json()["code"] == "name_taken"
    renamed = client.post("/v1/projects", json={**body, "name": "other"}, headers=KEY)
    assert renamed.json()["code"] == "idempotency_conflict"


def test_many_at_once_make_one_key(client: TestClient) -> None:
    def post(_number: int) -> Response:
        return client.post("/v1/keys", json={"name": "ci"}, headers=KEY)

    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(post, range(8)))
    assert len({answer.json()["key"] for answer in answers}) == 1
    assert [each["name"] for each in client.get("/v1/keys").json()["data"]].count("ci") == 1


@pytest.mark.parametrize("odd", ["", "x" * 256, "\x7f"])
def test_a_key_that_cannot_be_is_refused(client: TestClient, odd: str) -> None:
    answer = begin_upload(client, **{"Idempotency-Key": odd})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/header/Idempotency-Key"


@both_databases
def test_keys_are_forgotten_after_a_day(client: TestClient, services: Services) -> None:
    first = begin_upload(client, **KEY).json()
    begin_upload(client, **{"Idempotency-Key": "young"})
    assert forget_answers(services.database, at_once=10) == 0
    with services.database.write() as session:
        session.execute(
            update(FirstAnswer)
            .where(FirstAnswer.key == KEY["Idempotency-Key"])
            .values(created_at=utc_now() - timedelta(seconds=KEPT_S + 1))
        )
    assert forget_answers(services.database, at_once=10) == 1
    assert begin_upload(client, **KEY).json()["id"] != first["id"]
