"""What all routes of one application share."""

from __future__ import annotations

from dataclasses import dataclass, field

from fastapi import Request

from app.db import Database
from app.jobs.waiter import JobWaiter
from app.limits.rate import RateLimiter
from app.limits.waits import Waits
from app.metrics.http import HttpMetrics
from app.queue import Publisher
from app.settings import Settings
from app.storage import BlobStore
from app.uploads.writers import Writers


@dataclass(frozen=True)
class Services:
    """Made once, in the lifespan."""

    settings: Settings
    database: Database
    publisher: Publisher
    store: BlobStore
    waiter: JobWaiter
    rate_limiter: RateLimiter
    waits: Waits
    http_metrics: HttpMetrics
    writers: Writers = field(default_factory=Writers)


def services(request: Request) -> Services:
    """Return the application's services."""
    found: Services = request.app.state.services
    return found
