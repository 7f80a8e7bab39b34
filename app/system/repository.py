"""Queries on workers."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session

from app.db import utc_now
from app.jobs.tables import WorkerSeen

SEEN_WITHIN_S = 15.0


def list_live_workers(session: Session) -> list[WorkerSeen]:
    """Return the workers that were seen lately."""
    since = utc_now() - timedelta(seconds=SEEN_WITHIN_S)
    return list(
        session.scalars(
            select(WorkerSeen).where(WorkerSeen.seen_at >= since).order_by(WorkerSeen.id)
        )
    )


def list_devices(workers: list[WorkerSeen]) -> list[str]:
    """Return the devices that the workers report, each once."""
    return sorted({str(device) for worker in workers for device in worker.info.get("devices", ())})
