from __future__ import annotations

import base64
import hashlib
import json
import sqlite3
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from app.db import utc_now
from app.ids import new_id
from app.jobs.tables import Artifact, Job
from app.main import create_app
from app.settings import Settings
from app.state import Services
from app.storage_tables import Blob
from tests.app import samples
from tests.app.conftest import Key
from tests.app.samples import files_in, upload
from tests.databases import both_databases


@pytest.mark.slow
@both_databases
def test_an_uploaded_model_is_described_and_comes_back_whole(client: TestClient) -> None:
    content = samples.scripted_cnn()
    model = upload(
        client, "models", content, name="Kätzchen/1",
        labels='{"team": "vision"}', sha256=samples.sha256(content),
        inputs='[{"name": "image", "shape": ["batch", 1, 8, 8]}]',
    )  # fmt: skip
    assert model["size_bytes"] == len(content)
    assert model["sha256"] == samples.sha256(content)
    assert (model["format"], model["status"]) == ("torchscript", "ready")
    assert model["parameters"] == 13770
    assert model["operators"]["aten::conv2d"] == 2
    assert model["labels"] == {"team": "vision"}
    assert model["inputs"] == [
        {"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8], "value": None}
    ]
    assert client.get(f"/v1/models/{model['id']}").json() == model
    answer = client.get(f"/v1/models/{model['id']}/content")
    assert answer.content == content
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode()
    assert answer.headers["repr-digest"] == f"sha-256=:{digest}:"
    assert answer.headers["content-length"] == str(len(content))
    assert answer.headers["content-disposition"] == (
        "attachment; filename=\"K_tzchen_1.pt\"; filename*=UTF-8''K%C3%A4tzchen%2F1.pt"
    )


@pytest.mark.parametrize("file_first", [True, False])
def test_fields_may_come_before_or_after_the_file(client: TestClient, file_first: bool) -> None:
    file = ("file", ("a.pt", samples.traced_cnn()))
    name = ("name", (None, "net"))
    parts = [file, name] if file_first else [name, file]
    answer = client.post("/v1/models", files=parts)
    assert answer.status_code == 201
    assert answer.json()["name"] == "net"
    assert answer.headers["location"] == f"/v1/models/{answer.json()['id']}"


@pytest.mark.parametrize(
    ("data", "pointer"),
    [
        ({}, "/name"),
        ({"name": ""}, "/name"),
        ({"name": "a\nb"}, "/name"),
        ({"name": "x" * 201}, "/name"),
        ({"name": "x", "colour": "red"}, "/colour"),
        ({"name": "x", "labels": "{"}, "/labels"),
        ({"name": "x", "labels": '{"a": 1}'}, "/labels/a"),
        ({"name": "x", "inputs": '[{"name": "image", "dtype": "int4"}]'}, "/inputs/0/dtype"),
        ({"name": "x", "inputs": '[{"name": "other", "shape": []}]'}, "/inputs"),
        ({"name": "x", "inputs": "[]"}, "/inputs"),
        ({"name": "x", "inputs": '[{"name": "image", "dtype": "int8", "value": 300}]'}, "/inputs"),
        ({"name": "x", "inputs": '[{"name": "image"}, {"name": "image.0"}]'}, "/inputs"),
        ({"name": "x", "sha256": "0" * 64}, "/sha256"),
        ({"name": ["x", "y"]}, "/name"),
    ],
)
def test_faulty_fields_are_pointed_at_and_nothing_is_stored(
    client: TestClient, settings: Settings, data: dict[str, str], pointer: str
) -> None:
    answer = client.post("/v1/models", files={"file": samples.traced_cnn()}, data=data)
    assert answer.status_code == 422
    assert [fault["pointer"] for fault in answer.json()["errors"]] == [pointer]
    assert files_in(settings) == []
    assert client.get("/v1/models").json()["data"] == []


def test_a_wrong_sha256_has_its_own_code(client: TestClient) -> None:
    answer = client.post(
        "/v1/models",
        files={"file": samples.traced_cnn()},
        data={"name": "x", "sha256": "ab" * 32},
    )
    assert answer.json()["code"] == "sha256_mismatch"


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "not_a_zip"),
        (b"not a model", "not_a_zip"),
        (samples.npz(input=samples.images()), "not_torchscript"),
        (samples.scripted_cnn()[:-100], "corrupt_archive"),
    ],
)
def test_a_file_that_is_no_model_is_422_and_leaves_nothing(
    client: TestClient, settings: Settings, content: bytes, code: str
) -> None:
    answer = client.post("/v1/models", files={"file": ("f", content)}, data={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert files_in(settings) == []


def test_no_file_and_two_files(client: TestClient) -> None:
    answer = client.post("/v1/models", files={"name": (None, "x")})
    assert answer.json()["errors"][0] == {"pointer": "/file", "detail": "This field is required."}
    parts = [("file", ("a", b"x")), ("file", ("b", b"x"))]
    assert client.post("/v1/models", files=parts).status_code == 422


@pytest.mark.parametrize(
    ("kind", "body", "status"),
    [
        ("text/plain", b"x", 415),
        ("", b"x", 415),
        ("multipart/form-data", b"x", 400),
        ("multipart/form-data; boundary=b", b"x", 400),
        ("multipart/form-data; boundary=b", b"--b\r\n\r\n\r\n--b--\r\n", 400),
        ("multipart/form-data; boundary=b", b"", 400),
        (
            "multipart/form-data; boundary=b",
            b'--b\r\nContent-Disposition: form-data; name="name"\r\n\r\nx',
            400,
        ),
        ("multipart/form-data; boundary=" + "b" * 5000, b"x", 400),
        ("application/json", b"{", 400),
        ("application/json", b"{}", 422),
        ("application/json", b"[]", 422),
    ],
)
def test_bodies_of_another_kind(client: TestClient, kind: str, body: bytes, status: int) -> None:
    answer = client.post("/v1/models", content=body, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"


def test_faults_in_json_are_pointed_at(client: TestClient) -> None:
    answer = client.post("/v1/models", json={"artifact_id": "x", "colour": 1})
    pointers = {fault["pointer"] for fault in answer.json()["errors"]}
    assert pointers == {"/artifact_id", "/name", "/colour"}


def test_a_number_is_declared_by_its_value(client: TestClient) -> None:
    declared = [{"name": "a", "shape": ["n", 4]}, {"name": "twice", "dtype": "bool", "value": True}]
    fields = {"name": "x", "inputs": json.dumps(declared)}
    answer = client.post("/v1/models", files={"file": samples.two_inputs()}, data=fields)
    assert answer.status_code == 201, answer.text
    assert answer.json()["inputs"][1] == {
        "name": "twice", "dtype": "bool", "shape": [], "value": True,
    }  # fmt: skip
    for value in ("1", "1e400", "NaN", "[true]", "null"):
        declared = f'[{{"name": "a", "shape": ["n", 4]}}, {{"name": "twice", "value": {value}}}]'
        answer = client.post(
            "/v1/models",
            files={"file": samples.two_inputs()},
            data={"name": "x", "inputs": declared},
        )
        assert answer.status_code == 422, value
        assert answer.json()["errors"][0]["pointer"].startswith("/inputs")


@pytest.mark.parametrize(
    "shape", ['["\\ud800"]', '["a\\u0000"]', "[1e400]", "[0]", '"x"', "[null]"]
)
def test_odd_texts_and_numbers_in_inputs_are_refused(client: TestClient, shape: str) -> None:
    inputs = f'[{{"name": "image", "shape": {shape}}}]'
    answer = client.post(
        "/v1/models", files={"file": samples.traced_cnn()}, data={"name": "x", "inputs": inputs}
    )
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"].startswith("/inputs/0/shape")


def test_a_locked_database_is_503_with_a_time_to_come_back(settings: Settings, key: Key) -> None:
    settings.database.busy_timeout_s = 0.3
    with (
        TestClient(create_app(settings), headers=key.header) as client,
        sqlite3.connect(settings.data_dir / "t.db", isolation_level=None) as other,
    ):
        other.execute("BEGIN IMMEDIATE")
        answer = client.post("/v1/keys", json={})
        assert client.get("/v1/models").status_code == 200
        other.execute("ROLLBACK")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_busy")
        assert int(answer.headers["retry-after"]) > 0
        assert client.post("/v1/keys", json={}).status_code == 201


def test_over_the_limit_is_413_with_and_without_a_declared_length(
    client: TestClient, settings: Settings
) -> None:
    limit = settings.limits.upload_bytes
    answer = client.post("/v1/models", files={"file": b"0" * (limit + 2**21)}, data={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")
    answer = client.post("/v1/models", files={"file": b"0" * (limit + 1)}, data={"name": "x"})
    assert answer.status_code == 413
    assert files_in(settings) == []


@both_databases
def test_equal_bytes_are_stored_once_until_the_last_owner_goes(
    client: TestClient, settings: Settings, services: Services, stranger: dict[str, str]
) -> None:
    content = samples.traced_cnn()
    first = upload(client, "models", content)
    second = upload(client, "models", content)
    third = client.post(
        "/v1/models", files={"file": content}, data={"name": "x"}, headers=stranger
    ).json()
    assert first["id"] != second["id"]
    assert len(files_in(settings)) == 1
    assert client.delete(f"/v1/models/{first['id']}").status_code == 204
    assert client.delete(f"/v1/models/{second['id']}").status_code == 204
    assert client.get(f"/v1/models/{third['id']}/content", headers=stranger).content == content
    assert client.delete(f"/v1/models/{third['id']}", headers=stranger).status_code == 204
    assert files_in(settings) == []
    with services.database.read() as session:
        assert session.query(Blob).count() == 0
    upload(client, "models", content)
    assert len(files_in(settings)) == 1


@both_databases
def test_another_projects_model_is_404_everywhere(
    client: TestClient, stranger: dict[str, str]
) -> None:
    model = upload(client, "models", samples.traced_cnn())
    url = f"/v1/models/{model['id']}"
    for answer in (
        client.get(url, headers=stranger),
        client.get(f"{url}/content", headers=stranger),
        client.delete(url, headers=stranger),
    ):
        assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert client.get("/v1/models", headers=stranger).json()["data"] == []
    assert client.get(url).status_code == 200


@both_databases
def test_lists_page_newest_first(client: TestClient) -> None:
    made = [upload(client, "models", samples.traced_cnn())["id"] for _ in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = client.get("/v1/models", params={"limit": 2, **after}).json()
        seen += [model["id"] for model in page["data"]]
        if not page["has_more"]:
            assert page["next_after"] is None
            break
        after = {"after": page["next_after"]}
    assert seen == made[::-1]


@both_databases
def test_a_model_that_a_job_needs_stays(client: TestClient, services: Services, key: Key) -> None:
    model = upload(client, "models", samples.traced_cnn())
    data = upload(client, "datasets", samples.npz(input=samples.images()))
    body = {"method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}}
    job = client.post("/v1/jobs", json=body).json()
    for kind, made in (("models", model), ("datasets", data)):
        answer = client.delete(f"/v1/{kind}/{made['id']}")
        assert (answer.status_code, answer.json()["code"]) == (409, "in_use")
        assert job["id"] in answer.json()["detail"]
    client.post(f"/v1/jobs/{job['id']}/cancel")
    for kind, made in (("models", model), ("datasets", data)):
        assert client.delete(f"/v1/{kind}/{made['id']}").status_code == 204


@both_databases
def test_a_model_of_an_artifact(
    client: TestClient, services: Services, key: Key, tmp_path: Path, stranger: dict[str, str]
) -> None:
    model = upload(client, "models", samples.traced_cnn())
    data = upload(client, "datasets", samples.npz(input=samples.images()))
    body = {"method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}}
    job = client.post("/v1/jobs", json=body).json()
    content = samples.scripted_cnn()
    (tmp_path / "made.pt").write_bytes(content)
    artifact_id = new_id("art")
    storage_key = f"jobs/{job['id']}/1/made.pt"
    services.store.put_file(tmp_path / "made.pt", storage_key)
    with services.database.write() as session:
        stored = session.get(Job, job["id"])
        assert stored is not None
        stored.status = "succeeded"
        session.add(
            Artifact(
                id=artifact_id, job_id=job["id"], project_id=key.project_id, name="made.pt",
                kind="model", format="torchscript", precision="int8", size_bytes=len(content),
                sha256=samples.sha256(content), storage_key=storage_key, created_at=utc_now(),
            )
        )  # fmt: skip
    order = {"artifact_id": artifact_id, "name": "next"}
    answer = client.post("/v1/models", json=order)
    assert answer.status_code == 201
    assert answer.json()["sha256"] == samples.sha256(content)
    assert client.get(f"/v1/artifacts/{artifact_id}/content").content == content
    assert client.post("/v1/models", json=order, headers=stranger).json()["code"] == (
        "artifact_not_found"
    )
    listed = client.get(f"/v1/jobs/{job['id']}/artifacts").json()["data"]
    assert [each["url"] for each in listed] == [f"/v1/artifacts/{artifact_id}/content"]
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get(f"/v1/artifacts/{artifact_id}").status_code == 404
    assert client.get(f"/v1/models/{answer.json()['id']}/content").content == content


def test_the_answer_is_what_openapi_says(client: TestClient) -> None:
    model = upload(client, "models", samples.two_inputs())
    schema = client.get("/openapi.json").json()["components"]["schemas"]["ModelView"]
    assert set(model) == set(schema["properties"])
    assert json.dumps(model["arguments"]).count("has_default") == 3
