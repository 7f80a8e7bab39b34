"""Database access: one engine, short sessions; commit first, then send the buffered messages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, DateTime, Engine, MetaData, create_engine, event
from sqlalchemy.engine import URL, Connection, Dialect, make_url
from sqlalchemy.orm import DeclarativeBase, Session
from sqlalchemy.types import TypeDecorator

from app.queue import Publisher, QueueName
from app.settings import Settings

_OUTBOX = "outbox"


def utc_now() -> datetime:
    """Return the current time, aware, in UTC."""
    return datetime.now(UTC)


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC datetime; SQLite, which knows no zones, stores it naive."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise ValueError("naive datetime")
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


class Base(DeclarativeBase):
    """Base of all tables."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map: ClassVar[dict[Any, Any]] = {
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[Any]: JSON,
    }


class Database:
    """Sessions on one engine. `read()` sees a snapshot, `write()` commits or rolls back whole."""

    def __init__(self, settings: Settings, publisher: Publisher | None = None) -> None:
        self.engine = create_database_engine(settings)
        self._writing = self.engine.execution_options(tersor_write=True)
        self._publisher = publisher

    @contextmanager
    def read(self) -> Iterator[Session]:
        """Yield a session for reading; nothing is committed."""
        with Session(self.engine, expire_on_commit=False) as session:
            yield session

    @contextmanager
    def write(self) -> Iterator[Session]:
        """Yield a session; on success commit, then send the messages that `wake` buffered."""
        with Session(self._writing, expire_on_commit=False) as session:
            with session.begin():
                yield session
            messages: list[tuple[str, QueueName]] = session.info.pop(_OUTBOX, [])
        if self._publisher is not None:
            for job_id, queue_name in messages:
                self._publisher.send(job_id, queue_name)

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()


def wake(session: Session, job_id: str, queue_name: QueueName) -> None:
    """Buffer a wake-up message; it goes out after the session's commit."""
    session.info.setdefault(_OUTBOX, []).append((job_id, queue_name))


def create_database_engine(settings: Settings) -> Engine:
    """Return the engine for the settings' URL; SQLite runs in WAL with durable commits."""
    url = make_url(settings.database_url)
    if url.get_backend_name() == "sqlite":
        return _create_sqlite_engine(url, settings)
    engine = create_engine(
        url, pool_size=settings.database.pool_size, max_overflow=30, pool_pre_ping=True
    )
    if url.get_backend_name() == "postgresql":
        _limit_waiting(engine, settings.database.busy_timeout_s)
    return engine


def _create_sqlite_engine(url: URL, settings: Settings) -> Engine:
    _create_parent(url)
    engine = create_engine(
        url,
        pool_size=settings.database.pool_size,
        max_overflow=30,
        connect_args={"timeout": settings.database.busy_timeout_s, "check_same_thread": False},
    )

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves, below
        cursor = connection.cursor()
        cursor.execute("PRAGMA journal_mode=WAL")
        cursor.execute("PRAGMA synchronous=FULL")  # what a client was told survives a power cut
        cursor.execute("PRAGMA foreign_keys=ON")
        cursor.close()

    @event.listens_for(engine, "begin")
    def _begin(connection: Connection) -> None:
        # a write takes the lock at once: upgrading a read lock later can fail without waiting
        writes = connection.get_execution_options().get("tersor_write", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine


def _limit_waiting(engine: Engine, timeout_s: float) -> None:
    """Let PostgreSQL end what would wait, or keep others waiting, without end.

    A process that is frozen in mid-transaction keeps its locks for as long as its connection
    lives, which the kernel keeps up for it.
    """
    timeout_ms = max(1, round(timeout_s * 1000))  # 0 would mean no limit at all

    @event.listens_for(engine, "connect")
    def _configure(connection: Any, _record: Any) -> None:
        # said by SET: as options of the connection PgBouncer refuses them
        with connection.cursor() as cursor:
            cursor.execute(f"SET lock_timeout = {timeout_ms}")
            cursor.execute(f"SET idle_in_transaction_session_timeout = {timeout_ms}")
        connection.commit()  # a rollback would take them back


def migrate(settings: Settings) -> None:
    """Bring the database to the newest schema."""
    config = _alembic_config()
    engine = create_database_engine(settings)
    config.attributes["engine"] = engine
    try:
        command.upgrade(config, "head")
    finally:
        engine.dispose()


def is_schema_current(engine: Engine) -> bool:
    """Return whether the database has exactly the schema that this code expects."""
    heads = ScriptDirectory.from_config(_alembic_config()).get_heads()
    with engine.connect() as connection:
        return MigrationContext.configure(connection).get_current_heads() == tuple(heads)


def _alembic_config() -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    return config


def _create_parent(url: URL) -> None:
    if url.database and url.database != ":memory:":
        Path(url.database).parent.mkdir(parents=True, exist_ok=True)
