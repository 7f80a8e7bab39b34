"""What all routes of one application share."""

from __future__ import annotations

from dataclasses import dataclass

from fastapi import Request

from app.db import Database
from app.jobs.waiter import JobWaiter
from app.queue import Publisher
from app.settings import Settings
from app.storage import BlobStore


@dataclass(frozen=True)
class Services:
    """Made once, in the lifespan."""

    settings: Settings
    database: Database
    publisher: Publisher
    store: BlobStore
    waiter: JobWaiter


def services(request: Request) -> Services:
    """Return the application's services."""
    found: Services = request.app.state.services
    return found
