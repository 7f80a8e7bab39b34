"""Settings of a worker, and each test on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db import Database
from app.settings import DatabaseSettings, Settings, StorageSettings, WorkerSettings
from app.storage import LocalBlobStore, open_store


@pytest.fixture(params=["sqlite", "postgresql"])
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def settings(database_url: str, tmp_path: Path) -> Settings:
    settings = Settings(data_dir=tmp_path)
    # the cached properties are set by hand, so that no variable of the machine gets in
    settings.__dict__["worker"] = WorkerSettings(
        lease_s=30, heartbeat_s=2, sweep_s=5, resend_after_s=10, max_attempts=3
    )
    settings.__dict__["storage"] = StorageSettings(url=f"file://{tmp_path}/blobs")
    settings.__dict__["database"] = DatabaseSettings(url=database_url)
    return settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> LocalBlobStore:
    store = open_store(settings.storage_url)
    assert isinstance(store, LocalBlobStore)
    return store
