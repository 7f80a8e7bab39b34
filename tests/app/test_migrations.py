"""Migrations on databases that hold something, as those of running services do."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, select, text

import app.migrations
from app.auth.repository import digest, find_key
from app.db import Base, Database, create_database_engine, is_schema_current, migrate, utc_now
from app.jobs.tables import Job, JobDataset
from app.projects.tables import Project
from app.settings import DatabaseSettings, Settings
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


def configure(engine: Engine) -> Config:
    config = Config()
    config.set_main_option("script_location", str(Path(app.migrations.__file__ or "").parent))
    config.attributes["engine"] = engine
    return config


@both_databases
def test_migrations_make_what_the_tables_say(settings: Settings) -> None:
    migrate(settings)
    engine = create_database_engine(settings)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
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
        key = find_key(session, "tsr_secret")
        assert key is not None
        assert (key.id, key.scopes, key.expires_at) == ("key_old", ["read"], None)
        project = session.get_one(Project, "prj_test")
        assert (project.stored_bytes_max, project.requests_per_s_max) == (None, None)
    command.downgrade(config, "0003")
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT name FROM projects")) == "test"
        assert connection.scalar(text("SELECT name FROM api_keys")) == "k"
    engine.dispose()
