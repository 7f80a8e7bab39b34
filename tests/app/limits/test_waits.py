"""How many may wait for jobs and follow events at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.errors import RateLimited, ServiceError, Unavailable
from app.limits.waits import Waits
from app.state import Services
from tests.app import samples
from tests.app.jobs.conftest import body, data, model
from tests.app.server import serve

__all__ = ["body", "data", "model"]  # fixtures
_STREAM = {"Accept": "text/event-stream"}


def code_of(ask: Callable[[], Any]) -> str:
    with pytest.raises(ServiceError) as caught:
        ask()
    assert int(caught.value.headers["Retry-After"]) > 0
    return f"{caught.value.status} {caught.value.code}"


def test_a_project_has_its_share_and_all_together_theirs() -> None:
    waits = Waits(per_project=2, in_all=3)
    with waits.hold("a"), waits.hold("a"):
        assert code_of(lambda: waits.enter("a")) == "429 too_many_waiting"
        with waits.hold("b"):
            assert code_of(lambda: waits.enter("b")) == "503 too_many_waiting"
        with waits.hold("b"):  # who was refused is not counted, who left no more
            pass
    with waits.hold("a"), waits.hold("a"):
        pass
    assert (RateLimited.status, Unavailable.status) == (429, 503)


def test_who_fails_while_waiting_is_no_longer_counted() -> None:
    waits = Waits(per_project=1, in_all=1)
    with pytest.raises(ZeroDivisionError), waits.hold("a"):
        _ = 1 / 0
    with waits.hold("a"):
        pass


def test_one_too_many_is_refused_before_anything_is_done(
    client: TestClient, services: Services, body: dict[str, Any]
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    project_id = client.get("/v1/projects").json()["data"][0]["id"]
    for _ in range(services.settings.limits.waiting_per_project):
        services.waits.enter(project_id)
    url, wait = job["urls"]["self"], {"Prefer": "wait=5"}
    refused = [
        client.get(url, headers=wait),
        client.get(f"{url}/events", headers=_STREAM),
        client.post("/v1/preflight", json=body),
    ]
    assert [each.status_code for each in refused] == [429] * 3
    assert {each.json()["code"] for each in refused} == {"too_many_waiting"}
    assert all(int(each.headers["retry-after"]) > 0 for each in refused)
    assert client.get(url).status_code == 200
    assert client.get(f"{url}/events").status_code == 200
    client.post(job["urls"]["cancel"])
    assert client.get(url, headers=wait).status_code == 200  # it has no need to wait
    services.waits.leave(project_id)
    assert client.post("/v1/preflight", json=body).status_code == 202
    assert client.get(f"{url}/events", headers=_STREAM).status_code == 200


@pytest.mark.slow
def test_a_stream_counts_until_it_ends_however_it_does(tmp_path: Path) -> None:
    limits = {"TERSOR_LIMIT_WAITING_PER_PROJECT": "2"}
    with serve(tmp_path / "data", **limits) as server, server.client() as client:
        inputs = '[{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]'
        made: Any = samples.upload(client, "models", samples.traced_cnn(), inputs=inputs)  # type: ignore[arg-type]
        job = client.post("/v1/jobs", json={"method": "convert", "model_id": made["id"]}).json()
        url = job["urls"]["events"]
        with client.stream("GET", url, headers=_STREAM) as first:
            assert first.status_code == 200
            with client.stream("GET", url, headers=_STREAM) as second:
                assert second.status_code == 200
                assert client.get(url, headers=_STREAM).status_code == 429
        assert status_once_free(client, url, job) == 200  # both had hung up


def status_once_free(client: httpx.Client, url: str, job: dict[str, Any]) -> int:
    deadline = time.monotonic() + 10
    while True:
        ender = threading.Timer(0.2, client.post, (job["urls"]["cancel"],))
        with client.stream("GET", url, headers=_STREAM) as answer:
            if answer.status_code == 200:
                ender.start()
                assert "cancelled" in "".join(answer.iter_text())
                ender.join()
                return 200
        if time.monotonic() > deadline:
            return answer.status_code
        time.sleep(0.1)
