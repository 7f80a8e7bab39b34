"""The real application on a free port, with SQLite and a local folder; no worker takes its jobs."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from typer.main import get_command
from typer.testing import CliRunner, Result

from app.auth import repository
from app.db import Database, migrate, utc_now
from app.ids import new_id
from app.jobs.tables import Artifact, Job, JobEvent
from app.main import create_app
from app.projects import repository as projects
from app.settings import BrokerSettings, Settings
from app.state import Services
from tersor import Client
from tersor.cli.commands import app
from tests.app import samples

_get_command = lru_cache(maxsize=1)(get_command)


@dataclass
class Server:
    """A service under test."""

    url: str
    key: str
    services: Services

    def run_job(self, job_id: str, files: dict[str, bytes], folder: Path) -> dict[str, Any]:
        """Do what a worker would: store files, and end the job with figures of them."""
        artifacts = []
        for name, content in files.items():
            source = folder / "made"
            source.write_bytes(content)
            key = f"jobs/{job_id}/1/{name}"
            size_bytes, sha256 = self.services.store.put_file(source, key)
            is_model = name.endswith(".pt")
            artifacts.append(
                Artifact(
                    id=new_id("art"), job_id=job_id, project_id=self.project_id, name=name,
                    kind="model" if is_model else "report",
                    format="torchscript" if is_model else "json",
                    precision="int8" if is_model else None,
                    size_bytes=size_bytes, sha256=sha256, storage_key=key, created_at=utc_now(),
                )
            )  # fmt: skip
        models = [_figures(artifact) for artifact in artifacts if artifact.kind == "model"]
        result = {
            "baseline": {
                "size_bytes": 4000, "parameters": 10,
                "latency_ms": {"p50": 2.0, "p90": 2.1, "p99": 2.2, "mean": 2.0, "runs": 100},
                "quality": {"metric": "top1", "value": 0.99, "samples": 12, "drop": None},
            },
            "artifacts": models,
            "recommended": models[0]["id"] if models else None,
            "layers": [
                {"name": "0", "type": "Conv2d", "precision": "int8", "size_bytes": [640, 160],
                 "sqnr_db": 40.1, "reason": None},
                {"name": "fc", "type": "Linear", "precision": "fp32", "size_bytes": [99, 99],
                 "sqnr_db": None, "reason": "an override keeps it"},
            ],
            "environment": {}, "provenance": {}, "training": None, "not_known_yet": 1,
        }  # fmt: skip
        with self.services.database.write() as session:
            session.add_all(artifacts)
        self.change(job_id, status="succeeded", progress=1.0, result=result, finished_at=utc_now())
        return result

    def change(self, job_id: str, **values: Any) -> None:
        """Write to the job's row, as a worker does."""
        with self.services.database.write() as session:
            job = session.get_one(Job, job_id)
            for name, value in values.items():
                setattr(job, name, value)
            job.version += 1

    def tell(
        self, job_id: str, type: str, message: str, data: dict[str, Any] | None = None
    ) -> None:
        """Add an event."""
        with self.services.database.write() as session:
            session.add(
                JobEvent(
                    job_id=job_id, created_at=utc_now(), level="info", type=type,
                    message=message, data=data,
                )
            )  # fmt: skip

    @property
    def project_id(self) -> str:
        with self.services.database.read() as session:
            project = projects.find_project(session, "default")
            assert project is not None
            return project.id


class Command:
    """Runs `tersor` in this process, with a server's address and key in the environment."""

    def __init__(self, server: Server | None = None) -> None:
        self.environment = (
            {"TERSOR_URL": server.url, "TERSOR_API_KEY": server.key} if server else {}
        )

    def __call__(self, *arguments: str | Path, status: int = 0) -> Result:
        done = CliRunner().invoke(app, [str(each) for each in arguments], env=self.environment)
        assert done.exit_code == status, (done.output, done.exception)
        return done

    def json(self, *arguments: str | Path, status: int = 0) -> Any:
        return json.loads(self(*arguments, "--json", status=status).stdout)


def _figures(artifact: Artifact) -> dict[str, Any]:
    return {
        "id": artifact.id, "name": artifact.name, "format": "torchscript", "precision": "int8",
        "size_bytes": artifact.size_bytes, "sha256": artifact.sha256,
        "compression_ratio": 3.9, "verdict": "faster",
        "speedup": {"value": 4.0, "ci95": [3.9, 4.1]},
        "latency_ms": {"p50": 0.5, "p90": 0.6, "p99": 0.7, "mean": 0.5, "runs": 100},
        "quality": {"metric": "top1", "value": 0.985, "samples": 12, "drop": 0.005},
        "url": f"/v1/artifacts/{artifact.id}/content",
    }  # fmt: skip


@pytest.fixture(autouse=True)
def bare_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No setting, key file or server of this machine gets into a test."""
    for name in list(os.environ):
        if name.startswith("TERSOR_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def built_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Typer would build the whole tree of commands for each of them that is run."""
    monkeypatch.setattr("typer.testing._get_command", _get_command)


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    settings = Settings(data_dir=folder)
    # nothing listens there: messages get lost, which the service must bear
    settings.__dict__["broker"] = BrokerSettings(url="redis://127.0.0.1:1/0")
    settings.limits.preflight_wait_s = 0.2
    migrate(settings)
    database = Database(settings)
    with database.write() as session:
        project = projects.create_project(session, "default")
        _, token = repository.create_key(session, project.id, "test", repository.SCOPES)
    database.close()
    service = create_app(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    # clients that a test broke off may still wait for their jobs
    config = uvicorn.Config(service, log_config=None, ws="none", timeout_graceful_shutdown=0)
    serving = uvicorn.Server(config)
    thread = threading.Thread(target=serving.run, args=([listener],))
    thread.start()
    deadline = time.monotonic() + 20
    while not serving.started:
        assert thread.is_alive()
        assert time.monotonic() < deadline
        time.sleep(0.02)
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    yield Server(url, token, service.state.services)
    service.state.services.publisher.close = lambda: None  # it gives the broker time to come back
    serving.should_exit = True
    thread.join(20)
    assert not thread.is_alive()


@pytest.fixture
def client(server: Server) -> Iterator[Client]:
    with Client(server.url, server.key) as client:
        yield client


@pytest.fixture
def tersor(server: Server) -> Command:
    return Command(server)


@pytest.fixture
def model_file(tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    path.write_bytes(samples.scripted_cnn())
    return path


@pytest.fixture
def dataset_file(tmp_path: Path) -> Path:
    path = tmp_path / "digits.npz"
    path.write_bytes(samples.npz(input=samples.images(), label=samples.labels()))
    return path
