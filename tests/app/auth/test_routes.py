from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select, update
from starlette.testclient import TestClient

from app.auth.tables import ApiKey
from app.db import utc_now
from app.settings import Settings
from app.state import Services
from tests.app.conftest import Key, make_key


def test_without_a_key_nothing_opens(client: TestClient) -> None:
    del client.headers["Authorization"]
    for path in ("/v1/models", "/v1/jobs", "/v1/keys", "/v1/system", "/v1/methods"):
        answer = client.get(path)
        assert answer.status_code == 401
        assert answer.headers["www-authenticate"].startswith("Bearer")
        assert answer.json()["code"] == "unauthorized"


@pytest.mark.parametrize(
    "header", ["Bearer tsr_wrong", "Bearer", "Basic eDp5", "tsr_x", "Bearer \xff", "bearer  "]
)
def test_a_wrong_key_is_401(client: TestClient, header: str) -> None:
    answer = client.get("/v1/models", headers={"Authorization": header.encode("latin-1")})  # type: ignore[dict-item]
    assert answer.status_code == 401


def test_a_new_key_works_until_it_is_revoked(client: TestClient, key: Key) -> None:
    made = client.post("/v1/keys", json={"name": "ci"}).json()
    assert made["project_id"] == key.project_id
    assert made["scopes"] == ["read", "write"]
    header = {"Authorization": f"Bearer {made['key']}"}
    assert client.get("/v1/models", headers=header).status_code == 200
    assert client.delete(f"/v1/keys/{made['id']}").status_code == 204
    assert client.get("/v1/models", headers=header).status_code == 401
    assert client.delete(f"/v1/keys/{made['id']}").status_code == 204


def test_the_secret_is_shown_once_and_stored_nowhere(
    client: TestClient, services: Services
) -> None:
    made = client.post("/v1/keys", json={}).json()
    assert made["key"].startswith("tsr_")
    assert len(made["key"]) > 40
    listed = client.get("/v1/keys").json()["data"]
    assert made["id"] in [each["id"] for each in listed]
    assert all("key" not in each for each in listed)
    with services.database.read() as session:
        row = session.scalars(select(ApiKey).where(ApiKey.id == made["id"])).one()
    assert made["key"] not in [str(value) for value in vars(row).values()]


def test_scopes_bound_what_a_key_may_do(client: TestClient, settings: Settings) -> None:
    reader = make_key(settings, "default", ("read",)).header
    assert client.get("/v1/models", headers=reader).status_code == 200
    assert client.post("/v1/keys", json={}, headers=reader).status_code == 403
    assert client.delete("/v1/models/mdl_x", headers=reader).json()["code"] == "forbidden"
    writer = make_key(settings, "default", ("write",)).header
    assert client.get("/v1/models", headers=writer).status_code == 403
    assert client.get("/v1/projects", headers=writer).status_code == 403


def test_a_key_cannot_give_more_than_it_has(client: TestClient, stranger: dict[str, str]) -> None:
    answer = client.post("/v1/keys", json={"scopes": ["admin"]}, headers=stranger)
    assert answer.status_code == 403


def test_only_an_admin_reaches_other_projects_keys(
    client: TestClient, stranger: dict[str, str], key: Key
) -> None:
    project = client.post("/v1/projects", json={"name": "third"}).json()
    body = {"project_id": project["id"]}
    made = client.post("/v1/keys", json=body)
    assert made.status_code == 201
    assert made.json()["project_id"] == project["id"]
    assert client.post("/v1/keys", json=body, headers=stranger).status_code == 403
    assert client.get("/v1/keys", params=body, headers=stranger).status_code == 403
    assert len(client.get("/v1/keys", params=body).json()["data"]) == 1
    assert client.delete(f"/v1/keys/{key.id}", headers=stranger).status_code == 404
    assert client.delete(f"/v1/keys/{made.json()['id']}").status_code == 204


def test_a_key_for_a_project_that_is_not_there(client: TestClient) -> None:
    answer = client.post("/v1/keys", json={"project_id": "prj_" + "0" * 26})
    assert answer.status_code == 422
    assert answer.json()["code"] == "project_not_found"
    assert answer.json()["errors"][0]["pointer"] == "/project_id"


def test_a_key_opens_nothing_after_its_time(client: TestClient, services: Services) -> None:
    soon = utc_now() + timedelta(hours=1)
    made = client.post("/v1/keys", json={"expires_at": soon.isoformat()}).json()
    header = {"Authorization": f"Bearer {made['key']}"}
    assert client.get("/v1/models", headers=header).status_code == 200
    with services.database.write() as session:
        session.execute(update(ApiKey).where(ApiKey.id == made["id"]).values(expires_at=utc_now()))
    answer = client.get("/v1/models", headers=header)
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")


@pytest.mark.slow
def test_a_key_cannot_live_on_in_one_that_it_made(client: TestClient) -> None:
    soon = utc_now() + timedelta(hours=1)
    made = client.post("/v1/keys", json={"expires_at": soon.isoformat()}).json()
    header = {"Authorization": f"Bearer {made['key']}"}
    child = client.post("/v1/keys", json={}, headers=header).json()
    assert child["expires_at"] == made["expires_at"]
    later = (soon + timedelta(seconds=1)).isoformat()
    answer = client.post("/v1/keys", json={"expires_at": later}, headers=header)
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")


@pytest.mark.parametrize("when", ["2020-01-01T00:00:00Z", "tomorrow", 5, "2099-01-01T00:00:00"])
def test_a_time_that_cannot_be_is_refused(client: TestClient, when: Any) -> None:
    answer = client.post("/v1/keys", json={"expires_at": when})
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["pointer"] == "/expires_at"
