from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import update
from starlette.testclient import TestClient

from app.admin import run
from app.audit.repository import forget_old
from app.audit.tables import AuditEvent
from app.db import utc_now
from app.settings import Settings
from app.state import Services
from tests.app import samples
from tests.app.conftest import Key, make_key
from tests.app.jobs.conftest import body, data, model
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures


def listed(client: TestClient, **params: Any) -> list[dict[str, Any]]:
    answer = client.get("/v1/audit", params=params)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["data"])


def test_who_changed_what_by_which_request(
    client: TestClient, key: Key, services: Services, body: dict[str, Any]
) -> None:
    job = client.post("/v1/jobs", json=body, headers={"X-Request-Id": "r-1"}).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    client.delete(f"/v1/jobs/{job['id']}")
    client.delete(f"/v1/models/{body['model_id']}")
    client.delete(f"/v1/datasets/{body['calibration']['dataset_id']}")
    events = listed(client)
    assert [event["action"] for event in events] == [
        "dataset.delete", "model.delete", "job.delete", "job.cancel", "job.create",
        "dataset.create", "model.create",
    ]  # fmt: skip
    assert {event["key_id"] for event in events} == {key.id}
    assert {event["project_id"] for event in events} == {key.project_id}
    made = events[4]
    assert (made["subject_id"], made["request_id"]) == (job["id"], "r-1")


def test_what_was_refused_or_only_read_is_no_change(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    before = listed(client)
    job = client.post("/v1/jobs", json={**body, "model_id": "mdl_" + "0" * 26})
    assert job.status_code == 422
    assert client.get("/v1/jobs").status_code == 200
    assert client.delete(f"/v1/jobs/job_{'0' * 26}").status_code == 404
    assert listed(client) == before


def test_keys_and_projects_are_watched_too(client: TestClient, key: Key) -> None:
    project = client.post("/v1/projects", json={"name": "p"}).json()
    client.patch(f"/v1/projects/{project['id']}", json={"limits": {"stored_bytes": 7}})
    made = client.post("/v1/keys", json={"name": "ci", "project_id": project["id"]}).json()
    client.delete(f"/v1/keys/{made['id']}")
    client.delete(f"/v1/keys/{made['id']}")  # it is revoked already
    events = listed(client, project_id=project["id"])
    assert [event["action"] for event in events] == [
        "key.revoke", "key.create", "project.change", "project.create"
    ]  # fmt: skip
    assert events[2]["details"] == {"stored_bytes_max": 7}
    assert events[1]["details"]["scopes"] == ["read", "write"]
    assert made["key"] not in str(events)
    assert listed(client, key_id=made["id"]) == []


def test_uploads_are_watched(client: TestClient) -> None:
    headers = {"Tus-Resumable": "1.0.0", "Upload-Length": "3"}
    upload = client.post("/v1/uploads", headers=headers).json()
    client.delete(f"/v1/uploads/{upload['id']}", headers=headers)
    assert [event["action"] for event in listed(client)] == ["upload.delete", "upload.create"]


def test_commands_on_the_server_have_no_key(client: TestClient, settings: Settings) -> None:
    made = run(["keys", "create", "--name", "ops"], settings)
    event = listed(client)[0]
    assert (event["action"], event["subject_id"]) == ("key.create", made["id"])
    assert (event["key_id"], event["request_id"]) == (None, None)


def test_only_admins_read_it(
    client: TestClient, settings: Settings, stranger: dict[str, str]
) -> None:
    own = make_key(settings, "default", ("read", "write")).header
    for header in (own, stranger):
        assert client.get("/v1/audit", headers=header).status_code == 403


@both_databases
def test_it_is_forgotten_after_its_days(client: TestClient, services: Services) -> None:
    for _ in range(3):
        samples.upload(client, "models", samples.traced_cnn())
    old, young = listed(client)[:2]
    with services.database.write() as session:
        session.execute(
            update(AuditEvent)
            .where(AuditEvent.id != young["id"])
            .values(created_at=utc_now() - timedelta(days=31))
        )
    assert forget_old(services.database, 30, at_once=1) == 1
    assert forget_old(services.database, 30, at_once=10) == 1
    assert forget_old(services.database, 30, at_once=10) == 0
    assert [event["id"] for event in listed(client)] == [young["id"]]
    assert old["id"] != young["id"]
