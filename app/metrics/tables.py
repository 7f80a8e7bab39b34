"""Table of counts that outlive what they count, and the processes that count."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base


class Counter(Base):
    """One series of a counter. It only grows."""

    __tablename__ = "counters"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    labels: Mapped[str] = mapped_column(String(300), primary_key=True)
    """Their values in the order of the metric's names, as a JSON list."""
    value: Mapped[float]
