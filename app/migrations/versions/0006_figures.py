"""what is counted of jobs, and the request that a job came with.

Revision ID: 0006
Revises: 0005
Create Date: 2026-11-25 23:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("request_id", sa.String(length=128), nullable=True))
    op.add_column("jobs", sa.Column("peak_memory_bytes", sa.BigInteger(), nullable=True))
    op.add_column(
        "jobs", sa.Column("tallied", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.create_index("ix_jobs_tally", "jobs", ["tallied", "status"], unique=False)
    op.create_table(
        "counters",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.String(length=300), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_counters")),
    )


def downgrade() -> None:
    op.drop_table("counters")
    op.drop_index("ix_jobs_tally", table_name="jobs")
    for name in ("tallied", "peak_memory_bytes", "request_id"):
        op.drop_column("jobs", name)
