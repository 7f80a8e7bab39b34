"""Table of uploaded datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Dataset(Base):
    """One uploaded npz or safetensors file; its bytes lie in the blob `sha256`."""

    __tablename__ = "datasets"
    __table_args__ = (Index(None, "project_id", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(200))
    format: Mapped[str] = mapped_column(String(16))
    size_bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), index=True)
    samples: Mapped[int] = mapped_column(BigInteger)
    arrays: Mapped[list[Any]]
    """`[{name, dtype, shape}]`, inputs in forward's order, then the label."""
    has_labels: Mapped[bool]
    labels: Mapped[dict[str, Any]]
    created_at: Mapped[datetime]
