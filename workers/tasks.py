"""The one task: a message names a job, and means: look whether there is work."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery

from app.queue import RUN_JOB

log = logging.getLogger(__name__)


def register_tasks(celery: Celery, work_off: Callable[[], None]) -> None:
    """Let the messages of `celery` call `work_off`."""

    @celery.task(name=RUN_JOB, ignore_result=True)  # type: ignore[untyped-decorator]
    def run_job(job_id: str) -> None:
        log.debug("woken", extra={"job_id": job_id})
        work_off()
