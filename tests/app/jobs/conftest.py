"""A model, data, and the body of a job that takes them."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import update
from starlette.testclient import TestClient

from app.jobs.tables import Job
from app.state import Services
from tests.app import samples
from tests.app.samples import upload


@pytest.fixture
def model(client: TestClient) -> dict[str, Any]:
    return upload(client, "models", samples.traced_cnn())


@pytest.fixture
def data(client: TestClient) -> dict[str, Any]:
    content = samples.npz(input=samples.images(), label=samples.labels())
    return upload(client, "datasets", content)


@pytest.fixture
def body(model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "ptq",
        "model_id": model["id"],
        "calibration": {"dataset_id": data["id"]},
    }


def change(services: Services, job_id: str, **values: Any) -> None:
    """Do to the row what a worker would."""
    with services.database.write() as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(version=Job.version + 1, **values)
        )
