"""Table of stored blobs: one row per distinct content."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Blob(Base):
    """Content stored once under its SHA-256.

    The row is the lock: storing and removing the same content both update it first, so a file is
    never unlinked while an upload of equal bytes relies on it.
    """

    __tablename__ = "blobs"

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    touched_at: Mapped[datetime]
