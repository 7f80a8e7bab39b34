"""What measures the load counts what it should, and fails where the service does."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.polling import poll, upload
from tests.app.server import Server, serve

LOAD = Path(__file__).parents[2] / "benchmarks" / "load.py"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("load") / "data") as server:
        yield server


@pytest.mark.slow
def test_every_answer_is_counted_and_what_is_no_answer_is_an_error(server: Server) -> None:
    with server.client() as client:
        found = poll(client, lambda: "/v1/methods", 3, 0.5)
        assert len(found.latencies_ms) >= 3
        assert found.errors == []
        missing = poll(client, lambda: "/v1/jobs/job_none", 2, 0.2, every_s=0.1)
        assert missing.errors == ["status 404"] * len(missing.latencies_ms)
        assert 2 <= len(missing.latencies_ms) <= 6


def test_as_many_bytes_arrive_as_were_to_be_sent(server: Server) -> None:
    tus = {"Tus-Resumable": "1.0.0"}
    with server.client() as client:
        made = client.post("/v1/uploads", headers={**tus, "Upload-Length": str(2 << 20)})
        path = made.headers["location"]
        assert upload(client, [path], 2).errors == []
        assert client.head(path, headers=tus).headers["upload-offset"] == str(2 << 20)
        assert upload(client, [path], 1).errors == ["status 409"]


@pytest.mark.flow
@pytest.mark.slow
def test_the_tables_are_made_on_a_service_of_its_own() -> None:
    options = ["--seconds", "1", "--clients", "4", "--rows", "20,40", "--drain", "10"]
    done = subprocess.run(
        [sys.executable, str(LOAD), *options, "--upload-mib", "1", "--json"],
        capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert set(figures) == {"polls", "jobs", "uploads", "rows"}
    assert all(row["errors"] == 0 for row in figures["polls"] + figures["uploads"])
    assert [row["rows"] for row in figures["rows"]][:2] == [20, 40]
