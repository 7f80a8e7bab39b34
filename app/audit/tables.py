"""Table of the audit log."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class AuditEvent(Base):
    """One change. It outlives what it names, so it refers to nothing."""

    __tablename__ = "audit_events"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    created_at: Mapped[datetime] = mapped_column(index=True)
    project_id: Mapped[str] = mapped_column(String(40))
    """Whose things changed: an admin may change another project's."""
    key_id: Mapped[str | None] = mapped_column(String(40), index=True)
    """Null: a command on the server itself."""
    action: Mapped[str] = mapped_column(String(40))
    subject_id: Mapped[str] = mapped_column(String(40))
    request_id: Mapped[str | None] = mapped_column(String(128))
    details: Mapped[dict[str, Any] | None]
