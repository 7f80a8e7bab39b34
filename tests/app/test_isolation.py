"""No key reaches another project's things, by any route that the OpenAPI document names."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from app.db import utc_now
from app.ids import new_id
from app.jobs.tables import Artifact
from app.state import Services
from tests.app import samples
from tests.app.conftest import Key

pytestmark = pytest.mark.slow

OPEN = {"/healthz", "/readyz"}
_TUS = {"Tus-Resumable": "1.0.0"}


def operations(app: FastAPI) -> Iterator[tuple[str, str]]:
    for path, methods in app.openapi()["paths"].items():
        for method in methods:
            yield method.upper(), path
            if method == "get":
                yield "HEAD", path


@pytest.fixture
def owned(client: TestClient, services: Services, key: Key) -> dict[str, str]:
    """One thing of each kind, by the name of the path parameter that it goes into."""
    model = samples.upload(client, "models", samples.traced_cnn())
    content = samples.npz(input=samples.images(), label=samples.labels())
    data = samples.upload(client, "datasets", content)
    body = {"method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}}
    job = client.post("/v1/jobs", json=body).json()
    preflight = client.post("/v1/preflight", json=body).json()
    began = client.post("/v1/uploads", headers={**_TUS, "Upload-Length": "3"})
    artifact_id = new_id("art")
    with services.database.write() as session:
        session.add(
            Artifact(
                id=artifact_id, job_id=job["id"], project_id=key.project_id, name="m.pt",
                kind="model", format="torchscript", precision="int8", size_bytes=3,
                sha256="0" * 64, storage_key="jobs/x/1/m.pt", created_at=utc_now(),
            )
        )  # fmt: skip
    return {
        "model_id": model["id"],
        "dataset_id": data["id"],
        "job_id": job["id"],
        "preflight_id": preflight["id"],
        "upload_id": began.json()["id"],
        "artifact_id": artifact_id,
        "key_id": key.id,
        "project_id": key.project_id,
        "method": "ptq",
    }


def fill(path: str, owned: dict[str, str]) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: owned[match[1]], path)


def test_without_a_key_nothing_answers_but_health(
    api: FastAPI, client: TestClient, owned: dict[str, str]
) -> None:
    del client.headers["Authorization"]
    asked = 0
    for method, path in operations(api):
        if path in OPEN:
            continue
        answer = client.request(method, fill(path, owned))
        assert answer.status_code == 401, (method, path)
        asked += 1
    assert asked > 40


def test_a_foreign_key_finds_nothing_by_id(
    api: FastAPI, client: TestClient, owned: dict[str, str], stranger: dict[str, str]
) -> None:
    ids = {value for name, value in owned.items() if name.endswith("_id")}
    before = {path: client.get(fill(path, owned)).json() for path in _looks(api)}
    asked = 0
    for method, path in operations(api):
        if "_id}" not in path:
            continue
        headers = {**stranger, **_TUS, "Upload-Offset": "0"}
        if method == "PATCH" and "uploads" in path:
            headers["Content-Type"] = "application/offset+octet-stream"
        body: dict[str, Any] = {"json": {}} if method == "PATCH" and "projects" in path else {}
        answer = client.request(method, fill(path, owned), headers=headers, **body)
        wanted = {404, 403} if path == "/v1/projects/{project_id}" else {404}
        assert answer.status_code in wanted, (method, path, answer.status_code, answer.text)
        assert not [each for each in ids if each in answer.text], (method, path)
        asked += 1
    assert asked > 20
    assert before == {path: client.get(fill(path, owned)).json() for path in _looks(api)}


def test_lists_and_the_rest_tell_a_foreign_key_nothing(
    api: FastAPI, client: TestClient, owned: dict[str, str], stranger: dict[str, str]
) -> None:
    secret = {value for name, value in owned.items() if name.endswith("_id")}
    for path in ("/v1/models", "/v1/datasets", "/v1/jobs", "/v1/uploads", "/v1/keys"):
        assert client.get(path, headers=stranger).status_code == 200
    for method, path in operations(api):
        if method not in ("GET", "HEAD") or "_id}" in path:
            continue
        answer = client.request(method, fill(path, owned), headers=stranger)
        assert not [each for each in secret if each in answer.text], (method, path)
        for parameter in ("project_id", "key_id"):
            params = {parameter: owned[parameter]}
            answer = client.request(method, fill(path, owned), headers=stranger, params=params)
            told = answer.text.replace(owned[parameter], "") if answer.is_error else answer.text
            assert not [each for each in secret if each in told], (method, path, parameter)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/models", {"artifact_id": "{artifact_id}", "name": "x"}),
        ("/v1/models", {"upload_id": "{upload_id}", "name": "x"}),
        ("/v1/datasets", {"upload_id": "{upload_id}", "name": "x"}),
        ("/v1/jobs", {"method": "convert", "model_id": "{model_id}"}),
        ("/v1/preflight", {"method": "convert", "model_id": "{model_id}"}),
        ("/v1/keys", {"project_id": "{project_id}"}),
    ],
)
def test_a_foreign_key_makes_nothing_of_anothers_things(
    client: TestClient,
    owned: dict[str, str],
    stranger: dict[str, str],
    path: str,
    body: dict[str, str],
) -> None:
    answer = client.post(path, json=json.loads(fill(json.dumps(body), owned)), headers=stranger)
    assert answer.status_code in (403, 422), answer.text
    assert answer.json()["code"].endswith("_not_found") or answer.json()["code"] == "forbidden"


def test_a_foreign_dataset_cannot_be_read_by_a_job(
    client: TestClient, owned: dict[str, str], stranger: dict[str, str]
) -> None:
    own = client.post(
        "/v1/models", files={"file": ("f", samples.traced_cnn())}, data={"name": "m"},
        headers=stranger,
    ).json()  # fmt: skip
    for role in ("calibration", "evaluation"):
        body = {"method": "ptq", "model_id": own["id"], role: {"dataset_id": owned["dataset_id"]}}
        answer = client.post("/v1/jobs", json=body, headers=stranger)
        assert (answer.status_code, answer.json()["code"]) == (422, "dataset_not_found")


def _looks(api: FastAPI) -> list[str]:
    return [
        path
        for method, path in operations(api)
        if method == "GET" and "_id}" in path and "content" not in path
    ]
