"""how long projects keep things.

Revision ID: 0008
Revises: 0007
Create Date: 2026-11-26 00:10:00
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("expires_after_s", sa.Integer(), nullable=True))


def downgrade() -> None:
    op.drop_column("projects", "expires_after_s")
