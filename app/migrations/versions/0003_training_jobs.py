"""jobs that train: the student of a distillation.

Revision ID: 0003
Revises: 0002
Create Date: 2026-11-25 23:00:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("student_model_id", sa.String(length=40), nullable=True))
    op.create_index(op.f("ix_jobs_student_model_id"), "jobs", ["student_model_id"], unique=False)


def downgrade() -> None:
    op.drop_index(op.f("ix_jobs_student_model_id"), table_name="jobs")
    op.drop_column("jobs", "student_model_id")
