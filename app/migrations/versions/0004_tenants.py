"""limits of projects, keys that expire, and the audit log.

Revision ID: 0004
Revises: 0003
Create Date: 2026-11-25 23:10:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

import app.db

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("stored_bytes_max", sa.BigInteger(), nullable=True))
    op.add_column("projects", sa.Column("unfinished_jobs_max", sa.Integer(), nullable=True))
    op.add_column("projects", sa.Column("requests_per_s_max", sa.Integer(), nullable=True))
    op.add_column(
        "api_keys", sa.Column("expires_at", app.db.UtcDateTime(timezone=True), nullable=True)
    )
    op.create_index("ix_artifacts_stored", "artifacts", ["project_id", "size_bytes"], unique=False)
    op.create_table(
        "audit_events",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", app.db.UtcDateTime(timezone=True), nullable=False),
        sa.Column("project_id", sa.String(length=40), nullable=False),
        sa.Column("key_id", sa.String(length=40), nullable=True),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("subject_id", sa.String(length=40), nullable=False),
        sa.Column("request_id", sa.String(length=128), nullable=True),
        sa.Column("details", sa.JSON(), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_events")),
    )
    for columns in (["created_at"], ["key_id"], ["project_id", "id"]):
        name = "_".join(("ix_audit_events", *columns))
        op.create_index(op.f(name), "audit_events", columns, unique=False)


def downgrade() -> None:
    op.drop_table("audit_events")
    op.drop_index("ix_artifacts_stored", "artifacts")
    op.drop_column("api_keys", "expires_at")
    for name in ("stored_bytes_max", "unfinished_jobs_max", "requests_per_s_max"):
        op.drop_column("projects", name)
