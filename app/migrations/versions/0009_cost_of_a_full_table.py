"""indexes, so that what is asked of jobs costs the same however many there are.

Revision ID: 0009
Revises: 0008
Create Date: 2026-11-26 04:40:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_QUEUED = sa.text("status = 'queued'")
_PREFLIGHT = sa.text("kind = 'preflight'")
_UNTALLIED = sa.text("tallied IS FALSE AND finished_at IS NOT NULL")
_UNTALLIED_SQLITE = sa.text("tallied IS 0 AND finished_at IS NOT NULL")


def upgrade() -> None:
    op.drop_index("ix_jobs_claim", table_name="jobs")
    op.drop_index("ix_jobs_tally", table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "queue", sa.text("priority DESC"), "id"])
    op.create_index("ix_jobs_list_by_method", "jobs", ["project_id", "kind", "method", "id"])
    op.create_index("ix_jobs_expiry", "jobs", ["project_id", "kind", "finished_at"])
    op.create_index(
        "ix_jobs_oldest", "jobs", ["queue", "created_at"],
        sqlite_where=_QUEUED, postgresql_where=_QUEUED,
    )  # fmt: skip
    op.create_index(
        "ix_jobs_old_preflights", "jobs", ["finished_at"],
        sqlite_where=_PREFLIGHT, postgresql_where=_PREFLIGHT,
    )  # fmt: skip
    op.create_index(
        "ix_jobs_untallied", "jobs", ["finished_at"],
        sqlite_where=_UNTALLIED_SQLITE, postgresql_where=_UNTALLIED,
    )  # fmt: skip


def downgrade() -> None:
    for name in ("untallied", "old_preflights", "oldest", "expiry", "list_by_method", "claim"):
        op.drop_index(f"ix_jobs_{name}", table_name="jobs")
    op.create_index("ix_jobs_claim", "jobs", ["status", "queue", "priority", "id"])
    op.create_index("ix_jobs_tally", "jobs", ["tallied", "status"])
