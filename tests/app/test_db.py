"""What waits for a lock, or keeps others waiting for one, does so for a limited time."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from starlette.testclient import TestClient

from app.db import Database
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import Key
from tests.databases import both_databases, on_postgresql

pytestmark = pytest.mark.slow

_TIMEOUT_S = 1.0


@pytest.fixture
def impatient(settings: Settings) -> Settings:
    settings.database.busy_timeout_s = _TIMEOUT_S
    return settings


@pytest.fixture
def database(impatient: Settings) -> Iterator[Database]:
    database = Database(impatient)
    yield database
    database.close()


def lock_keys(database: Database) -> str:
    """Return what locks the keys against other writers; on SQLite every write does."""
    is_sqlite = database.engine.dialect.name == "sqlite"
    return "SELECT 1" if is_sqlite else "LOCK TABLE api_keys IN EXCLUSIVE MODE"


@both_databases
def test_a_write_that_waits_too_long_for_another_is_told_to_try_again(
    settings: Settings, key: Key
) -> None:
    slow = Database(settings)
    settings.database.busy_timeout_s = _TIMEOUT_S
    with TestClient(create_app(settings), headers=key.header) as client:
        with slow.write() as session:
            session.execute(text(lock_keys(slow)))
            answer = client.post("/v1/keys", json={"name": "late"})
        slow.close()
        assert (answer.status_code, answer.json()["code"]) == (503, "database_busy")
        assert answer.headers["retry-after"]
        assert client.post("/v1/keys", json={"name": "again"}).status_code == 201


@on_postgresql
def test_the_limits_hold_on_every_connection_and_outlive_a_rollback(database: Database) -> None:
    for _ in range(2):
        with database.engine.connect() as connection:
            connection.rollback()
            for name in ("lock_timeout", "idle_in_transaction_session_timeout"):
                assert connection.scalar(text(f"SHOW {name}")) == "1s"
            connection.rollback()
        database.engine.dispose()


@on_postgresql  # SQLite cannot take a lock from a process that lives
def test_a_writer_that_froze_loses_its_locks_and_is_told_to_try_again(
    impatient: Settings, database: Database, key: Key
) -> None:
    api = create_app(impatient)

    @api.get("/frozen")
    def frozen() -> None:
        with database.write() as session:
            session.execute(text(lock_keys(database)))
            time.sleep(_TIMEOUT_S * 3)
            session.execute(text("SELECT 1"))

    with TestClient(api, headers=key.header) as client:
        answer = client.get("/frozen")
        assert (answer.status_code, answer.json()["code"]) == (503, "database_busy")
        assert client.post("/v1/keys", json={"name": "free"}).status_code == 201
