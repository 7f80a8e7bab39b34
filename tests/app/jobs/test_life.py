"""Jobs are cancelled, removed, listed; their events."""

from __future__ import annotations

from typing import Any

from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import JobEvent
from app.state import Services
from tests.app.jobs.conftest import change
from tests.databases import both_databases


@both_databases
def test_a_queued_job_is_cancelled_at_once(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    answer = client.post(job["urls"]["cancel"])
    assert answer.status_code == 202
    cancelled = answer.json()
    assert (cancelled["status"], cancelled["finished"]) == ("cancelled", True)
    assert cancelled["finished_at"] == cancelled["cancel_requested_at"]
    again = client.post(job["urls"]["cancel"])
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")
    messages = [event["message"] for event in client.get(job["urls"]["events"]).json()["data"]]
    assert messages == ["queued", "cancelled"]


@both_databases
def test_a_running_job_is_asked_to_stop(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    change(services, job["id"], status="running", started_at=utc_now(), attempt=1)
    first = client.post(job["urls"]["cancel"])
    assert first.status_code == 202
    assert first.json()["status"] == "running"
    assert first.json()["cancel_requested_at"]
    second = client.post(job["urls"]["cancel"])
    assert second.status_code == 202
    assert second.json() == first.json()


def test_what_is_not_there_cannot_be_cancelled(
    client: TestClient, body: dict[str, Any], stranger: dict[str, str]
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    for url in ("self", "events", "artifacts"):
        assert client.get(job["urls"][url], headers=stranger).status_code == 404
    assert client.post(job["urls"]["cancel"], headers=stranger).status_code == 404
    assert client.delete(job["urls"]["self"], headers=stranger).status_code == 404
    assert client.post("/v1/jobs/job_nope/cancel").status_code == 404
    assert client.get(job["urls"]["self"]).json()["status"] == "queued"


@both_databases
def test_only_a_finished_job_can_be_removed(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json={**body, "labels": {"a": "b"}}).json()
    assert client.delete(job["urls"]["self"]).json()["code"] == "in_use"
    client.post(job["urls"]["cancel"])
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert client.get(job["urls"]["self"]).status_code == 404
    with services.database.read() as session:
        assert session.query(JobEvent).count() == 0


@both_databases
def test_lists_filter_and_page(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    jobs = [
        client.post("/v1/jobs", json={**body, "labels": {"run": str(i % 2), "k": "a:b"}}).json()
        for i in range(4)
    ]
    fields = {"method": "convert", "model_id": body["model_id"], "calibration": body["calibration"]}
    jobs.append(client.post("/v1/jobs", json=fields).json())
    client.post(jobs[0]["urls"]["cancel"])

    def ids(**query: Any) -> list[int]:
        answer = client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        order = {job["id"]: index for index, job in enumerate(jobs)}
        return [order[job["id"]] for job in answer.json()["data"]]

    assert ids() == [4, 3, 2, 1, 0]
    assert ids(status="cancelled") == [0]
    assert ids(method="convert") == [4]
    assert ids(label="run:1") == [3, 1]
    assert ids(label="k:a:b", status="queued") == [3, 2, 1]
    assert ids(label="run:2") == []
    assert ids(created_after=jobs[2]["created_at"]) == [4, 3]
    assert ids(limit=2, after=jobs[3]["id"]) == [2, 1]


def test_queue_position_counts_who_goes_first(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    first, second, urgent = (
        client.post("/v1/jobs", json={**body, "priority": priority}).json()
        for priority in (0, 0, 5)
    )

    def positions() -> list[int | None]:
        return [
            client.get(job["urls"]["self"]).json()["queue_position"]
            for job in (first, second, urgent)
        ]

    assert positions() == [2, 3, 1]
    change(services, urgent["id"], status="running")
    assert positions() == [1, 2, None]


@both_databases
def test_events_page_oldest_first(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    with services.database.write() as session:
        for step in range(4):
            session.add(
                JobEvent(
                    job_id=job["id"], created_at=utc_now(), level="info", type="metrics",
                    message=f"step {step}", data={"step": step},
                )
            )  # fmt: skip
    page = client.get(job["urls"]["events"], params={"limit": 3}).json()
    assert [event["message"] for event in page["data"]] == ["queued", "step 0", "step 1"]
    assert page["has_more"]
    query = {"after": page["next_after"]}
    rest = client.get(job["urls"]["events"], params=query).json()
    assert [event["data"]["step"] for event in rest["data"]] == [2, 3]
    assert not rest["has_more"]


def test_a_retry_is_a_new_job_with_the_same_spec(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    first = client.post("/v1/jobs", json={**body, "labels": {"run": "1"}, "seed": 3}).json()
    url = f"/v1/jobs/{first['id']}/retry"
    early = client.post(url)
    assert (early.status_code, early.json()["code"]) == (409, "not_finished")
    change(services, first["id"], status="failed")
    again = client.post(url)
    assert again.status_code == 202
    assert again.headers["location"] == f"/v1/jobs/{again.json()['id']}"
    assert again.json()["id"] != first["id"]
    assert (again.json()["spec"], again.json()["labels"]) == (first["spec"], first["labels"])
    assert again.json()["status"] == "queued"
    assert client.get(f"/v1/jobs/{first['id']}").json()["status"] == "failed"


def test_a_retry_is_checked_anew(
    client: TestClient, services: Services, body: dict[str, Any], stranger: dict[str, str]
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    change(services, job["id"], status="cancelled")
    assert client.post(f"/v1/jobs/{job['id']}/retry", headers=stranger).status_code == 404
    keyed = {"Idempotency-Key": "k"}
    once = client.post(f"/v1/jobs/{job['id']}/retry", headers=keyed).json()
    assert client.post(f"/v1/jobs/{job['id']}/retry", headers=keyed).json() == once
    change(services, once["id"], status="cancelled")
    assert client.delete(f"/v1/models/{body['model_id']}").status_code == 204
    gone = client.post(f"/v1/jobs/{job['id']}/retry")
    assert (gone.status_code, gone.json()["code"]) == (422, "model_not_found")
    change(services, job["id"], spec={**job["spec"], "method": "prehistoric"})
    old = client.post(f"/v1/jobs/{job['id']}/retry")
    assert (old.status_code, old.json()["code"]) == (422, "invalid_request")
