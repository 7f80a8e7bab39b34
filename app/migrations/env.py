"""Alembic's entry: runs migrations on the engine that `app.db.migrate` hands over."""

from __future__ import annotations

from alembic import context

import app.audit.tables
import app.auth.tables
import app.datasets.tables
import app.idempotency.tables
import app.jobs.tables
import app.metrics.tables
import app.models.tables
import app.projects.tables
import app.storage_tables
import app.uploads.tables
import app.webhooks.tables  # noqa: F401 - registers all tables
from app.db import Base, create_database_engine
from app.settings import get_settings

engine = context.config.attributes.get("engine") or create_database_engine(get_settings())

with engine.execution_options(tersor_write=True).connect() as connection:
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        compare_type=True,
        transaction_per_migration=True,
    )
    with context.begin_transaction():
        context.run_migrations()
