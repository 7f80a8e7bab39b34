"""Every error is a problem document, whoever raises it."""

from __future__ import annotations

import logging

import pytest
from fastapi import FastAPI
from sqlalchemy import event
from starlette.testclient import TestClient

from app.error_handlers import pointer_to
from app.state import Services
from tests.app.conftest import Key


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nothing", 404, "not_found"),
        ("GET", "/v1/models/", 404, "not_found"),
        ("PUT", "/v1/models", 405, "method_not_allowed"),
        ("GET", "/v1/models/mdl_nope", 404, "not_found"),
        ("GET", "/v1/jobs?limit=0", 422, "invalid_request"),
        ("GET", "/v1/jobs?colour=red", 422, "invalid_request"),
        ("GET", "/v1/jobs?status=done", 422, "invalid_request"),
        ("GET", "/v1/jobs?label=run:%00", 422, "invalid_request"),  # PostgreSQL has no NUL
        ("GET", "/v1/jobs?created_after=9999-12-31T23:59:59-12:00", 422, "invalid_request"),
        ("GET", "/v1/jobs?created_after=0001-01-01T00:00:00%2B12:00", 422, "invalid_request"),
    ],
)
def test_router_and_validation_answer_alike(
    client: TestClient, method: str, path: str, status: int, code: str
) -> None:
    answer = client.request(method, path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    body = answer.json()
    assert set(body) == {"type", "title", "status", "detail", "code", "errors", "request_id"}
    assert (body["status"], body["code"]) == (status, code)
    assert body["type"] == f"urn:tersor:problem:{code}"
    assert body["request_id"] == answer.headers["x-request-id"]


def test_405_names_all_methods_of_the_address(client: TestClient) -> None:
    assert client.put("/v1/models").headers["allow"] == "GET, HEAD, POST"
    assert client.post("/healthz").headers["allow"] == "GET, HEAD"
    assert client.head("/v1/jobs/x/cancel").headers["allow"] == "POST"


def test_json_without_its_content_type_is_told_what_is_missing(client: TestClient) -> None:
    answer = client.post(
        "/v1/jobs",
        content='{"method": "ptq"}',
        headers={"Content-Type": "application/x-www-form-urlencoded"},  # as curl -d sends it
    )
    assert answer.status_code == 422
    assert "Content-Type: application/json" in answer.json()["detail"]


def test_query_faults_are_pointed_at(client: TestClient) -> None:
    faults = client.get("/v1/jobs?limit=0&colour=red").json()["errors"]
    assert {fault["pointer"] for fault in faults} == {"/query/limit", "/query/colour"}


def test_an_unexpected_error_tells_the_log_and_not_the_client(
    api: FastAPI, key: Key, caplog: pytest.LogCaptureFixture
) -> None:
    @api.get("/boom")
    def boom() -> None:
        raise RuntimeError("secret detail in /srv/path")

    with TestClient(api, headers=key.header) as client, caplog.at_level(logging.ERROR):
        answer = client.get("/boom", headers={"X-Request-Id": "abc-1"})
    assert answer.status_code == 500
    assert answer.json()["code"] == "internal_error"
    assert answer.json()["request_id"] == "abc-1"
    assert "secret" not in answer.text
    assert "secret detail" in caplog.text


def test_a_full_database_is_told_from_a_busy_one(client: TestClient, services: Services) -> None:
    engine = services.database.engine
    event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA max_page_count = 1"))
    engine.dispose()  # SQLite takes that for: not a page more than there are
    for _ in range(500):
        answer = client.post("/v1/keys", json={"name": "k" * 200})
        if answer.status_code != 201:
            break
    assert (answer.status_code, answer.json()["code"]) == (503, "database_full")
    assert client.get("/v1/keys").status_code == 200


def test_a_clients_request_id_is_kept_if_it_is_sane(client: TestClient) -> None:
    assert client.get("/healthz", headers={"X-Request-Id": "a.B-9_"}).headers["x-request-id"] == (
        "a.B-9_"
    )
    for bad in ("a b", "x" * 129, 'a"b', ""):
        given = client.get("/healthz", headers={"X-Request-Id": bad}).headers["x-request-id"]
        assert given != bad
        assert given.isalnum()


@pytest.mark.parametrize(
    ("location", "body", "pointer"),
    [
        (["ptq", "config", "mode"], {"method": "ptq", "config": {"mode": 1}}, "/config/mode"),
        (["ptq", "model_id"], {"method": "ptq"}, "/model_id"),
        (["ptq", "labels", "a/b~c", "[key]"], {"labels": {"a/b~c": 1}}, "/labels/a~1b~0c"),
        (["inputs", 0, "shape", 1, "int"], {"inputs": [{"shape": ["b", {}]}]}, "/inputs/0/shape/1"),
        ([], {}, ""),
        (["ptq"], {"method": "ptq", "ptq": 3}, "/ptq"),
    ],
)
def test_pointers_hold_only_what_the_body_holds(
    location: list[int | str], body: object, pointer: str
) -> None:
    is_missing = location == ["ptq", "model_id"]
    assert pointer_to(location, body, is_missing=is_missing) == pointer
