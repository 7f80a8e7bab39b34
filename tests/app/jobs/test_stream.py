"""Server-sent events, followed by a stock client from a real server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import connect_sse
from starlette.testclient import TestClient

from app.db import Database
from app.jobs import stream
from app.jobs.repository import append_event, delete_jobs
from app.jobs.tables import Job
from app.state import Services
from tests.app import samples
from tests.app.conftest import make_key, make_settings
from tests.app.jobs.conftest import change
from tests.app.server import Server, serve, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("stream") / "data") as server:
        yield server


@pytest.fixture
def database(server: Server) -> Iterator[Database]:
    settings = make_settings(server.data_dir, f"sqlite:///{server.data_dir}/tersor.db", "")
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def job_id(server: Server) -> str:
    with server.client() as client:
        model: Any = samples.upload(client, "models", samples.traced_cnn())  # type: ignore[arg-type]
        content = samples.npz(input=samples.images(), label=samples.labels())
        data: Any = samples.upload(client, "datasets", content)  # type: ignore[arg-type]
        body = {
            "method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}
        }  # fmt: skip
        return str(client.post("/v1/jobs", json=body).json()["id"])


def happen(database: Database, job_id: str, message: str, status: str | None = None) -> None:
    """Do what a worker would."""
    with database.write() as session:
        append_event(session, job_id, "log", message)
        job = session.get_one(Job, job_id)
        job.status, job.version = status or job.status, job.version + 1


def follow(client: httpx.Client, job_id: str, **headers: str) -> Iterator[Any]:
    with connect_sse(client, "GET", f"/v1/jobs/{job_id}/events", headers=headers) as source:
        yield from source.iter_sse()


def later(*steps: Callable[[], None]) -> threading.Thread:
    def run() -> None:
        for step in steps:
            time.sleep(0.3)
            step()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def test_events_come_as_they_happen_and_the_stream_ends_with_the_job(
    server: Server, database: Database, job_id: str
) -> None:
    heard = []
    with server.client() as client:
        thread = later(
            lambda: happen(database, job_id, "one"),
            lambda: happen(database, job_id, "two"),
            lambda: happen(database, job_id, "three", "succeeded"),
        )
        for event in follow(client, job_id):
            heard.append((event.event, event.json()["message"], time.monotonic()))
            assert event.id == str(event.json()["id"])
        thread.join()
    assert [message for _, message, _ in heard] == ["queued", "one", "two", "three"]
    assert [kind for kind, _, _ in heard] == ["status", "log", "log", "log"]
    assert heard[2][2] - heard[1][2] > 0.1  # not all at the end


def test_a_client_that_lost_the_stream_goes_on_where_it_was(
    server: Server, database: Database, job_id: str
) -> None:
    for number in range(5):
        happen(database, job_id, f"event {number}")
    with server.client() as client:
        heard = follow(client, job_id)
        seen = [next(heard) for _ in range(3)]
        heard.close()  # type: ignore[attr-defined]
        happen(database, job_id, "last", "failed")
        rest = list(follow(client, job_id, **{"Last-Event-ID": seen[-1].id}))
        messages = [event.json()["message"] for event in [*seen, *rest]]
        assert messages == ["queued", *(f"event {number}" for number in range(5)), "last"]
        done = client.get(
            f"/v1/jobs/{job_id}/events",
            headers={"Accept": "text/event-stream", "Last-Event-ID": rest[-1].id},
        )
    assert done.status_code == 204  # an EventSource asks no more


def test_more_events_than_a_page_come_in_order(
    server: Server, database: Database, job_id: str
) -> None:
    with database.write() as session:
        for number in range(450):
            append_event(session, job_id, "progress", str(number))
        session.get_one(Job, job_id).status = "cancelled"
    with server.client() as client:
        heard = [event.json()["message"] for event in follow(client, job_id)]
    assert heard == ["queued", *map(str, range(450))]


def test_the_page_is_as_before_without_the_header(server: Server, job_id: str) -> None:
    with server.client() as client:
        page = client.get(f"/v1/jobs/{job_id}/events")
        assert page.headers["content-type"] == "application/json"
        head = client.head(f"/v1/jobs/{job_id}/events", headers={"Accept": "text/event-stream"})
        assert head.status_code == 200
    assert [event["message"] for event in page.json()["data"]] == ["queued"]


def test_a_stranger_follows_nothing(server: Server, job_id: str) -> None:
    settings = make_settings(server.data_dir, f"sqlite:///{server.data_dir}/tersor.db", "")
    header = make_key(settings, "other").header
    answer = httpx.get(
        f"{server.url}/v1/jobs/{job_id}/events",
        headers={**header, "Accept": "text/event-stream"}, trust_env=False,
    )  # fmt: skip
    assert answer.status_code == 404


@pytest.mark.parametrize("end", ["revoke", "delete"])
def test_the_stream_ends_when_the_key_or_the_job_is_gone(
    server: Server, database: Database, job_id: str, end: str
) -> None:
    with server.client() as client:
        made = client.post("/v1/keys", json={}).json()
        header = {"Authorization": f"Bearer {made['key']}"}
        heard = follow(client, job_id, **header)
        assert next(heard).event == "status"
        with server.client() as other:
            if end == "revoke":
                other.delete(f"/v1/keys/{made['id']}")
            else:
                with database.write() as session:
                    delete_jobs(session, [job_id])
        began_s = time.monotonic()
        assert list(heard) == []
    assert time.monotonic() - began_s < 5


def test_a_stopping_server_ends_the_stream(tmp_path: Path) -> None:
    with serve(tmp_path / "data") as server, server.client() as client:
        inputs = '[{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]'
        model: Any = samples.upload(client, "models", samples.traced_cnn(), inputs=inputs)  # type: ignore[arg-type]
        made = client.post("/v1/jobs", json={"method": "convert", "model_id": model["id"]})
        job_id = made.json()["id"]
        ended = threading.Event()
        lines: list[str] = []

        def read() -> None:
            headers = {"Accept": "text/event-stream"}
            with client.stream("GET", f"/v1/jobs/{job_id}/events", headers=headers) as answer:
                lines.extend(answer.iter_lines())
            ended.set()

        threading.Thread(target=read, daemon=True).start()
        wait_until(lambda: any(line.startswith("id:") for line in lines))
        server.process.terminate()
        assert ended.wait(5)
        server.process.wait(5)
    assert lines[0] == "retry: 2000"


def test_a_silent_stream_is_kept_alive(
    client: TestClient, body: dict[str, Any], services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEEP_ALIVE_S", 0.2)
    monkeypatch.setattr(stream, "_LOOK_S", 0.1)
    job = client.post("/v1/jobs", json=body).json()
    thread = later(
        lambda: change(services, job["id"]),
        lambda: change(services, job["id"]),
        lambda: change(services, job["id"], status="succeeded"),
    )
    headers = {"Accept": "text/event-stream"}
    text = client.get(f"/v1/jobs/{job['id']}/events", headers=headers).text
    thread.join()
    assert text.count(": still here\n\n") >= 2
    assert text.startswith("retry: 2000\nid: ")
