from __future__ import annotations

from datetime import timedelta
from typing import Any

from sqlalchemy import update
from starlette.testclient import TestClient

from app.datasets.tables import Dataset
from app.db import utc_now
from app.jobs.tables import Job
from app.models.tables import Model
from app.projects.retention import remove_expired
from app.state import Services
from tests.app import samples
from tests.app.conftest import Key
from tests.app.jobs.conftest import body, change, data, model
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures


def age(services: Services, hours: float) -> None:
    then = utc_now() - timedelta(hours=hours)
    with services.database.write() as session:
        session.execute(update(Model).values(created_at=then))
        session.execute(update(Dataset).values(created_at=then))
        session.execute(update(Job).where(Job.finished_at.is_not(None)).values(finished_at=then))


def keep_for(client: TestClient, key: Key, seconds: int | None) -> None:
    answer = client.patch(f"/v1/projects/{key.project_id}", json={"expires_after_s": seconds})
    assert answer.json()["expires_after_s"] == seconds


@both_databases
def test_jobs_go_first_then_what_none_of_them_uses(
    client: TestClient, services: Services, key: Key, body: dict[str, Any]
) -> None:
    keep_for(client, key, 7200)
    ended = client.post("/v1/jobs", json=body).json()
    waiting = client.post("/v1/jobs", json=body).json()
    lonely = samples.upload(client, "models", samples.scripted_cnn())
    change(services, ended["id"], status="succeeded", finished_at=utc_now())
    age(services, 1)
    assert remove_expired(services.database, services.store, 100) == 0
    age(services, 3)
    assert remove_expired(services.database, services.store, 100) == 2
    assert client.get(f"/v1/jobs/{ended['id']}").status_code == 404
    assert client.get(f"/v1/models/{lonely['id']}").status_code == 404
    # the job that waits still needs these
    assert client.get(f"/v1/models/{body['model_id']}/content").status_code == 200
    change(services, waiting["id"], status="failed", finished_at=utc_now())
    assert remove_expired(services.database, services.store, 100) == 0
    age(services, 3)
    assert remove_expired(services.database, services.store, 100) == 3
    assert samples.files_in(services.settings) == []
    actions = [event["action"] for event in client.get("/v1/audit").json()["data"][:5]]
    assert sorted(actions) == [
        "dataset.expire", "job.expire", "job.expire", "model.expire", "model.expire"
    ]  # fmt: skip


def test_without_the_rule_everything_stays(
    client: TestClient, services: Services, key: Key, body: dict[str, Any]
) -> None:
    keep_for(client, key, 7200)
    keep_for(client, key, None)
    age(services, 1000)
    assert remove_expired(services.database, services.store, 100) == 0
    answer = client.patch(f"/v1/projects/{key.project_id}", json={"expires_after_s": 5})
    assert answer.status_code == 422
