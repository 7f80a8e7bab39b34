"""Table of projects."""

from __future__ import annotations

from datetime import datetime

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Project(Base):
    """Owner of every other resource. A limit that is null does not bind."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    created_at: Mapped[datetime]
    stored_bytes_max: Mapped[int | None] = mapped_column(BigInteger)
    """Of models, datasets, artifacts and unfinished uploads together."""
    unfinished_jobs_max: Mapped[int | None] = mapped_column(Integer)
    """Queued and running; preflights are counted for themselves."""
    requests_per_s_max: Mapped[int | None] = mapped_column(Integer)
    expires_after_s: Mapped[int | None] = mapped_column(Integer)
    """Older jobs are removed, then models and datasets that no job uses; null keeps all."""
