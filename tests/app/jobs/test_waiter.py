from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence

from sqlalchemy.exc import OperationalError

from app.jobs.waiter import JobWaiter


class Rows:
    """Versions of jobs, in place of the table; counts how often they were read."""

    def __init__(self) -> None:
        self.versions = {"a": 1, "b": 1}
        self.reads = 0
        self.failures = 0

    def read(self, job_ids: Sequence[str]) -> Mapping[str, int]:
        self.reads += 1
        if self.failures:
            self.failures -= 1
            raise OperationalError("", {}, Exception("database is locked"))
        return {job_id: self.versions[job_id] for job_id in job_ids if job_id in self.versions}


def make() -> tuple[JobWaiter, Rows]:
    rows = Rows()
    waiter = JobWaiter(None, poll_s=0.02)  # type: ignore[arg-type]
    waiter._read_versions = rows.read  # type: ignore[method-assign]
    return waiter, rows


def test_a_hundred_waiters_share_one_poller() -> None:
    async def run() -> None:
        waiter, rows = make()
        waiting = [asyncio.create_task(waiter.wait("a", 1, 10)) for _ in range(100)]
        other = asyncio.create_task(waiter.wait("b", 1, 0.3))
        await asyncio.sleep(0.15)
        rows.versions["a"] = 2
        assert await asyncio.gather(*waiting) == [True] * 100
        assert await other is False
        assert rows.reads < 40
        reads = rows.reads
        await asyncio.sleep(0.15)
        assert rows.reads <= reads + 1  # nobody waits: nobody polls
        assert await waiter.wait("a", 1, 5) is True

    asyncio.run(run())


def test_a_removed_job_releases_its_waiters() -> None:
    async def run() -> None:
        waiter, rows = make()
        del rows.versions["a"]
        assert await waiter.wait("a", 1, 5) is True

    asyncio.run(run())


def test_a_busy_database_is_waited_out() -> None:
    async def run() -> None:
        waiter, rows = make()
        rows.failures = 3
        rows.versions["a"] = 2
        assert await waiter.wait("a", 1, 5) is True
        assert rows.reads == 4

    asyncio.run(run())


def test_closing_releases_all() -> None:
    async def run() -> None:
        waiter, _rows = make()
        waiting = asyncio.create_task(waiter.wait("a", 1, 60))
        await asyncio.sleep(0.05)
        began_s = time.monotonic()
        await waiter.close()
        await waiting
        assert await waiter.wait("a", 1, 60) is False
        assert time.monotonic() - began_s < 1

    asyncio.run(run())
