"""Celery, reduced to what we need of it: a wake-up call that reaches one idle worker."""

from __future__ import annotations

from typing import Any

from celery import Celery, bootsteps
from celery.worker.consumer import Consumer

from app.queue import broker_options
from app.settings import Settings

_TICK_S = 0.1


class QuickTick(bootsteps.StartStopStep):  # type: ignore[misc]
    """Lets the consumer look around ten times a second instead of once.

    With `worker_disable_prefetch`, a worker whose slots are taken does not listen. Nothing tells
    it when a slot is free again; it would notice within a second.
    """

    requires = ("celery.worker.consumer.connection:Connection",)

    def start(self, parent: Consumer) -> None:
        """Begin to tick; losing the broker clears all timers and starts the steps again."""
        parent.timer.call_repeatedly(_TICK_S, _nothing)


def create_celery(settings: Settings) -> Celery:
    """Return the Celery application of the workers."""
    celery = Celery("workers", broker=settings.broker_url, set_as_current=False)
    celery.conf.update(broker_options())
    celery.conf.update(worker_options())
    celery.steps["consumer"].add(QuickTick)
    return celery


def worker_options() -> dict[str, Any]:
    """Return the settings of the receiving side.

    Early acknowledgement, since the row is the truth: with `acks_late`, losing the broker while a
    job runs ends the worker, and long jobs are delivered again. Retries, time limits, revoking
    and results are the row's and the supervisor's business.
    """
    return {
        "task_acks_late": False,
        "task_reject_on_worker_lost": False,
        "task_store_errors_even_if_ignored": False,
        # a message fetched ahead would wait behind a long job while another worker is idle
        "worker_disable_prefetch": True,
        "worker_prefetch_multiplier": 1,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_enable_remote_control": False,
        "worker_send_task_events": False,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "worker_pool": "threads",
        "task_create_missing_queues": True,
    }


def _nothing() -> None:
    """The tick itself is what matters."""
