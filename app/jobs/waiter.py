"""Waits for job rows to change: one query in a while for all who wait, not one each."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence

from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError
from starlette.concurrency import run_in_threadpool

from app.db import Database
from app.jobs.tables import Job

log = logging.getLogger(__name__)

POLL_S = 0.1
_BATCH = 500


class JobWaiter:
    """Tells when a job's `version` is no longer the one a client knows."""

    def __init__(self, database: Database, poll_s: float = POLL_S) -> None:
        self._database = database
        self._poll_s = poll_s
        self._waiting: dict[str, set[tuple[int, asyncio.Event]]] = defaultdict(set)
        self._poller: asyncio.Task[None] | None = None
        self._closed = False

    @property
    def closed(self) -> bool:
        """Whether the server stops, so that nobody is to wait any more."""
        return self._closed

    async def wait(self, job_id: str, version: int, timeout_s: float) -> bool:
        """Return True as soon as the job's version differs, or False when time is up."""
        if self._closed:
            return False
        entry = (version, asyncio.Event())
        self._waiting[job_id].add(entry)
        if self._poller is None or self._poller.done():
            self._poller = asyncio.create_task(self._poll(), name="job-waiter")
        try:
            async with asyncio.timeout(timeout_s):
                await entry[1].wait()
            return True
        except TimeoutError:
            return False
        finally:
            self._waiting[job_id].discard(entry)
            if not self._waiting[job_id]:
                del self._waiting[job_id]

    async def close(self) -> None:
        """Stop polling and release all who wait."""
        self._closed = True
        if self._poller is not None:
            self._poller.cancel()
            await asyncio.gather(self._poller, return_exceptions=True)
        for entries in self._waiting.values():
            for _version, changed in entries:
                changed.set()

    async def _poll(self) -> None:
        while self._waiting:
            await asyncio.sleep(self._poll_s)
            asked = list(self._waiting)
            try:
                versions = await run_in_threadpool(self._read_versions, asked)
            except SQLAlchemyError as error:  # a busy database: those who wait keep waiting
                log.warning("cannot look at waited-for jobs: %s", error)
                continue
            for job_id in asked:
                for version, changed in self._waiting.get(job_id, ()):
                    if versions.get(job_id) != version:
                        changed.set()

    def _read_versions(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        versions: dict[str, int] = {}
        with self._database.read() as session:
            for start in range(0, len(job_ids), _BATCH):
                batch = job_ids[start : start + _BATCH]
                rows = session.execute(select(Job.id, Job.version).where(Job.id.in_(batch)))
                versions |= {job_id: version for job_id, version in rows}
        return versions
