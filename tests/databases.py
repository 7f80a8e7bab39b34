"""A migrated database of a test's own: SQLite, or PostgreSQL where a server answers."""

from __future__ import annotations

import importlib.util
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.engine import make_url
from sqlalchemy.exc import OperationalError

from app.db import Base, migrate
from app.settings import DatabaseSettings, Settings

SERVER = os.environ.get(
    "TERSOR_TEST_POSTGRES_URL", "postgresql+psycopg://postgres@127.0.0.1:5432/postgres"
)

both_databases = pytest.mark.parametrize("database_kind", ["sqlite", "postgresql"], indirect=True)
on_postgresql = pytest.mark.parametrize("database_kind", ["postgresql"], indirect=True)


@pytest.fixture
def database_kind(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "sqlite"))


@pytest.fixture
def database_url(
    database_kind: str, tmp_path: Path, request: pytest.FixtureRequest
) -> Iterator[str]:
    """A database with the newest schema and no rows."""
    if database_kind == "sqlite":
        path = tmp_path / "t.db"
        shutil.copy(request.getfixturevalue("sqlite_template"), path)
        yield f"sqlite:///{path}"
        return
    url: str | None = request.getfixturevalue("postgres_url")
    if url is None:
        pytest.skip("no PostgreSQL answers")
    yield url
    _empty(url)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file to copy: migrating takes longer than most tests."""
    path = tmp_path_factory.mktemp("template") / "t.db"
    _migrate(f"sqlite:///{path}")
    return path


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str | None]:
    """One database for all tests, emptied between them; None if no server answers."""
    if not _answers():
        yield None
        return
    with temporary_database() as url:
        _migrate(url)
        yield url


@contextmanager
def temporary_database() -> Iterator[str]:
    """Yield the URL of a new database without tables; skip the test if no server answers."""
    if not _answers():
        pytest.skip("no PostgreSQL answers")
    admin = create_engine(make_url(SERVER), isolation_level="AUTOCOMMIT")
    name = f"tersor_test_{secrets.token_hex(6)}"
    with admin.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(SERVER).set(database=name).render_as_string(hide_password=False)
    finally:
        with admin.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        admin.dispose()


def _answers() -> bool:
    if importlib.util.find_spec("psycopg") is None:
        return False
    engine = create_engine(make_url(SERVER), connect_args={"connect_timeout": 2})
    try:
        with engine.connect():
            return True
    except OperationalError:
        return False
    finally:
        engine.dispose()


def _migrate(url: str) -> None:
    settings = Settings()
    settings.__dict__["database"] = DatabaseSettings(url=url)
    migrate(settings)


def _empty(url: str) -> None:
    """Remove all rows. Connections that a test left open would hold locks: they are ended."""
    engine = create_engine(url)
    with engine.begin() as connection:
        connection.execute(
            text(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
        )
        for table in reversed(Base.metadata.sorted_tables):  # quicker than TRUNCATE when small
            connection.execute(table.delete())
    engine.dispose()
