"""Table of unfinished uploads."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class PartialUpload(Base):
    """A file that comes in pieces. Its bytes lie in the storage's part of the same name.

    The row is the truth: bytes of the part beyond `offset_bytes` may not have reached the disk,
    and are cut off before the next ones are written.
    """

    __tablename__ = "uploads"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    offset_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    upload_metadata: Mapped[dict[str, Any]]
    """`Upload-Metadata`, decoded."""
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime] = mapped_column(index=True)
    """Moves on with every piece."""
