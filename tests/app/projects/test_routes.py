from __future__ import annotations

import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from tests.app import samples
from tests.app.conftest import Key, make_key

NONE = {"stored_bytes": None, "unfinished_jobs": None, "requests_per_s": None}


def test_a_project_begins_with_the_limits_it_is_given(client: TestClient) -> None:
    plain = client.post("/v1/projects", json={"name": "plain"}).json()
    assert plain["limits"] == NONE
    body = {"name": "small", "limits": {"stored_bytes": 1000, "requests_per_s": 5}}
    small = client.post("/v1/projects", json=body).json()
    assert small["limits"] == {**NONE, "stored_bytes": 1000, "requests_per_s": 5}
    assert client.get("/v1/projects").json()["data"][0] == small


def test_a_change_leaves_what_it_does_not_name(client: TestClient) -> None:
    made = client.post(
        "/v1/projects", json={"name": "p", "limits": {"stored_bytes": 1000, "unfinished_jobs": 2}}
    ).json()
    url = f"/v1/projects/{made['id']}"
    changed = client.patch(url, json={"limits": {"unfinished_jobs": None, "requests_per_s": 9}})
    assert changed.json()["limits"] == {
        "stored_bytes": 1000, "unfinished_jobs": None, "requests_per_s": 9
    }  # fmt: skip
    assert client.patch(url, json={}).json() == changed.json()


@pytest.mark.parametrize("limits", [{"stored_bytes": -1}, {"requests_per_s": 0}, {"jobs": 1}])
def test_a_limit_that_cannot_be_is_refused(client: TestClient, limits: dict[str, int]) -> None:
    answer = client.post("/v1/projects", json={"name": "p", "limits": limits})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["pointer"] == f"/limits/{next(iter(limits))}"


def test_a_project_tells_its_own_keys_what_it_uses(
    client: TestClient, key: Key, settings: Settings
) -> None:
    content = samples.traced_cnn()
    samples.upload(client, "models", content)
    tus = {"Tus-Resumable": "1.0.0", "Upload-Length": "70"}
    assert client.post("/v1/uploads", headers=tus).status_code == 201
    reader = make_key(settings, "default", ("read",)).header
    seen = client.get(f"/v1/projects/{key.project_id}", headers=reader).json()
    assert seen["usage"] == {"stored_bytes": len(content) + 70, "unfinished_jobs": 0}


def test_only_an_admin_changes_limits(
    client: TestClient, key: Key, settings: Settings, stranger: dict[str, str]
) -> None:
    url = f"/v1/projects/{key.project_id}"
    own = make_key(settings, "default", ("read", "write")).header
    for header in (own, stranger):
        answer = client.patch(url, json={"limits": {"stored_bytes": None}}, headers=header)
        assert answer.status_code == 403
    assert client.get(url, headers=stranger).status_code == 404
    for odd in ("prj_x", "prj_" + "0" * 26, "%00"):
        assert client.get(f"/v1/projects/{odd}").status_code == 404
        assert client.patch(f"/v1/projects/{odd}", json={}).status_code == 404


def test_projects_have_distinct_names(client: TestClient) -> None:
    assert client.post("/v1/projects", json={"name": "x"}).status_code == 201
    answer = client.post("/v1/projects", json={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (409, "name_taken")
    names = [project["name"] for project in client.get("/v1/projects").json()["data"]]
    assert names[0] == "x"
