"""Table of the answers that a repeated request gets again."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Integer, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class FirstAnswer(Base):
    """The answer to the first request of a project with some key.

    It is inserted in the transaction that creates what the request asks for: so the key says
    exactly whether that is there, whatever dies in between.
    """

    __tablename__ = "first_answers"

    project_id: Mapped[str] = mapped_column(String(40), primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of what was asked."""
    status: Mapped[int] = mapped_column(Integer)
    headers: Mapped[dict[str, Any]]
    body: Mapped[str] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(index=True)
