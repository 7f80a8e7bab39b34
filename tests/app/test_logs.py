from __future__ import annotations

import logging
from typing import Any

import pytest
from starlette.testclient import TestClient

from app.logs import PlainFormatter
from app.state import Services
from tests.app.jobs.conftest import body, data, model
from workers.lease import claim

__all__ = ["body", "data", "model"]  # fixtures


@pytest.mark.parametrize(
    ("sent", "logged"),
    [
        ("a\n2026-01-01 ERROR app: not so", "a\\n2026-01-01 ERROR app: not so"),
        ("a\r\x00b", "a\\r\\x00b"),
        ("\x1b[2Jgone\x9b1m", "\\x1b[2Jgone\\x9b1m"),
        ("日本\tkept", "日本\tkept"),
    ],
)
def test_what_a_client_sends_neither_forges_lines_nor_steers_a_terminal(
    sent: str, logged: str
) -> None:
    record = logging.LogRecord("app", logging.INFO, "", 0, "%s", (f"GET /{sent}",), None)
    assert PlainFormatter("%(message)s").format(record) == f"GET /{logged}"


def test_a_job_keeps_the_id_of_the_request_that_submitted_it(
    client: TestClient, services: Services, body: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "app.jobs.service"):
        job = client.post("/v1/jobs", json=body, headers={"X-Request-Id": "r-7"}).json()
    assert [record.__dict__["job_id"] for record in caplog.records] == [job["id"]]
    with services.database.write() as session:
        claimed = claim(session, ["cpu"], "w", 30)
    assert claimed is not None
    assert (claimed.job_id, claimed.request_id) == (job["id"], "r-7")
