"""Migrations on databases that hold something, as those of running services do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, Engine, column, insert, inspect, select, table, text

import app.migrations
from app.auth.repository import digest, find_key
from app.db import Base, Database, create_database_engine, is_schema_current, migrate, utc_now
from app.jobs.tables import Job, JobDataset
from app.projects.tables import Project
from app.settings import DatabaseSettings, Settings
from tests.app.old_rows import FILLED_IN, ROWS
from tests.databases import both_databases, temporary_database
from tests.workers.rows import add_job


@pytest.fixture
def settings(database_kind: str, tmp_path: Path) -> Iterator[Settings]:
    """Settings of a database without tables."""
    settings = Settings(data_dir=tmp_path)
    if database_kind == "sqlite":
        settings.__dict__["database"] = DatabaseSettings(url=f"sqlite:///{tmp_path}/t.db")
        yield settings
        return
    with temporary_database() as url:
        settings.__dict__["database"] = DatabaseSettings(url=url)
        yield settings


def configure(engine: Engine | None = None) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(app.migrations.__file__ or "").parent))
    config.attributes["engine"] = engine
    return config


REVISIONS = sorted(
    script.revision for script in ScriptDirectory.from_config(configure()).walk_revisions()
)


def columns_of(engine: Engine) -> dict[str, list[str]]:
    """Return the columns of each table as it is now."""
    found = inspect(engine)
    return {
        name: [each["name"] for each in found.get_columns(name)]
        for name in found.get_table_names()
        if name != "alembic_version"
    }


def fill(connection: Connection, columns: dict[str, list[str]]) -> None:
    """Insert a row into each table, with the columns that it has."""
    assert set(columns) <= set(ROWS), "tests/app/old_rows.py lacks a row"
    for whole in Base.metadata.sorted_tables:
        if whole.name not in columns:
            continue
        own = [each for each in whole.columns if each.name in columns[whole.name]]
        row = {each.name: ROWS[whole.name][each.name] for each in own if not is_counted(each)}
        old = table(whole.name, *(column(each.name, each.type) for each in own))
        connection.execute(insert(old).values(row))


def is_counted(each: Any) -> bool:
    return each.autoincrement is True  # the database counts


def read(connection: Connection, columns: dict[str, list[str]]) -> dict[str, list[dict[str, Any]]]:
    """Return the rows of each table, with the columns given."""
    found = {}
    for whole in Base.metadata.sorted_tables:
        own = [whole.columns[name] for name in columns.get(whole.name, ())]
        if own:
            rows = connection.execute(select(*own)).mappings()
            found[whole.name] = [dict(row) for row in rows]
    return found


def expect(columns: dict[str, list[str]], then: dict[str, list[str]]) -> dict[str, Any]:
    """Return the rows of `fill` at the schema `then`, as they must be with `columns`."""
    return {
        name: [
            {
                each: ROWS[name].get(each, 1) if each in then[name] else FILLED_IN.get((name, each))
                for each in names
            }
        ]
        if name in then
        else []
        for name, names in columns.items()
    }


@both_databases
def test_migrations_make_what_the_tables_say(settings: Settings) -> None:
    migrate(settings)
    engine = create_database_engine(settings)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
    engine.dispose()


@pytest.mark.slow
@both_databases
@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_of_every_release_are_kept_on_the_way_up_and_back(
    settings: Settings, revision: str
) -> None:
    engine = create_database_engine(settings)
    config = configure(engine)
    command.upgrade(config, revision)
    then = columns_of(engine)
    with engine.begin() as connection:
        fill(connection, then)
    migrate(settings)
    now = columns_of(engine)
    assert set(now) == set(Base.metadata.tables)
    with engine.begin() as connection:
        assert read(connection, now) == expect(now, then)
        # the database goes on counting where it was
        events = Base.metadata.tables["job_events"]
        added = connection.execute(insert(events).values(ROWS["job_events"]).returning(events.c.id))
        assert added.scalar_one() == 2
        connection.execute(events.delete().where(events.c.id == 2))
    command.downgrade(config, revision)
    assert columns_of(engine) == then
    with engine.begin() as connection:
        assert read(connection, then) == expect(then, then)
    engine.dispose()


@both_databases
def test_jobs_from_before_there_was_training_are_kept(settings: Settings) -> None:
    engine = create_database_engine(settings)
    config = configure(engine)
    command.upgrade(config, "0002")
    columns = {
        "id": "job_old", "project_id": "prj_test", "kind": "job", "method": "ptq", "queue": "cpu",
        "status": "running", "progress": 0.5, "message": "", "spec": '{"method": "ptq"}',
        "model_id": "mdl_old", "labels": "{}", "priority": 0, "timeout_s": 60, "version": 7,
        "attempt": 1, "fence": 3, "message_sent_at": utc_now(), "created_at": utc_now(),
    }  # fmt: skip
    names = ", ".join(columns)
    values = ", ".join(f":{name}" for name in columns)
    with engine.begin() as connection:
        now = {"now": utc_now()}
        connection.execute(text("INSERT INTO projects VALUES ('prj_test', 'test', :now)"), now)
        connection.execute(text(f"INSERT INTO jobs ({names}) VALUES ({values})"), columns)
        connection.execute(text("INSERT INTO job_datasets VALUES ('job_old', 'calibration', 'd')"))
    assert not is_schema_current(engine)
    migrate(settings)
    assert is_schema_current(engine)
    with closing(Database(settings)) as database:
        with database.read() as session:
            job = session.get(Job, "job_old")
            assert job is not None
            assert (job.model_id, job.fence, job.version) == ("mdl_old", 3, 7)
            assert (job.student_model_id, job.spec) == (None, {"method": "ptq"})
            assert session.scalar(select(JobDataset.dataset_id)) == "d"
        add_job(database, student_model_id="mdl_student")
    command.downgrade(config, "0002")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM jobs")) == 2
        assert connection.scalar(text("SELECT fence FROM jobs WHERE id = 'job_old'")) == 3
    engine.dispose()


@both_databases
def test_keys_and_projects_from_before_there_were_limits_are_kept(settings: Settings) -> None:
    engine = create_database_engine(settings)
    config = configure(engine)
    command.upgrade(config, "0003")
    with engine.begin() as connection:
        now = {"now": utc_now()}
        connection.execute(text("INSERT INTO projects VALUES ('prj_test', 'test', :now)"), now)
        connection.execute(
            text(
                "INSERT INTO api_keys VALUES "
                "('key_old', 'prj_test', 'k', 'tsr_', :digest, '[\"read\"]', :now, NULL)"
            ),
            {**now, "digest": digest("tsr_secret")},
        )
    migrate(settings)
    with closing(Database(settings)) as database, database.read() as session:
        found = find_key(session, "tsr_secret")
        assert found is not None
        assert (found.key_id, found.scopes, found.expires_at) == ("key_old", {"read"}, None)
        project = session.get_one(Project, "prj_test")
        assert (project.stored_bytes_max, project.requests_per_s_max) == (None, None)
    command.downgrade(config, "0003")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT name FROM projects")) == "test"
        assert connection.scalar(text("SELECT name FROM api_keys")) == "k"
    engine.dispose()
