"""A migrated database: SQLite always, PostgreSQL too where one answers on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from app.db import Database, migrate
from app.settings import DatabaseSettings, Settings, StorageSettings, WorkerSettings
from app.storage import LocalBlobStore, open_store
from tests.workers.postgres import temporary_database


@pytest.fixture(params=["sqlite", "postgresql"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Settings]:
    settings = Settings(data_dir=tmp_path)
    # the cached properties are set by hand, so that no variable of the machine gets in
    settings.__dict__["worker"] = WorkerSettings(
        lease_s=30, heartbeat_s=0.2, sweep_s=5, resend_after_s=10, max_attempts=3
    )
    settings.__dict__["storage"] = StorageSettings(url=f"file://{tmp_path}/blobs")
    if request.param == "sqlite":
        settings.__dict__["database"] = DatabaseSettings(url=f"sqlite:///{tmp_path}/t.db")
        yield settings
        return
    with temporary_database() as url:
        settings.__dict__["database"] = DatabaseSettings(url=url)
        yield settings


@pytest.fixture
def database(settings: Settings) -> Iterator[Database]:
    migrate(settings)
    database = Database(settings)
    yield database
    database.close()


@pytest.fixture
def store(settings: Settings) -> LocalBlobStore:
    store = open_store(settings.storage_url)
    assert isinstance(store, LocalBlobStore)
    return store
