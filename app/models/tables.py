"""Table of uploaded models."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Model(Base):
    """One uploaded TorchScript file; its bytes lie in the blob `sha256`."""

    __tablename__ = "models"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(200))
    status: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    inputs: Mapped[list[Any] | None]
    """Declared at upload: `[{name, dtype, shape, value}]`."""
    arguments: Mapped[list[Any]]
    """Of forward, read from its code: `[{name, type, has_default, fields}]`."""
    operators: Mapped[dict[str, Any]]
    """Operator name to number of calls in the code."""
    parameters: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
