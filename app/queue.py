"""Wake-up messages for workers. A message carries a job id and may be lost, doubled or late.

The database row is the truth; the sweeper re-sends what got lost, so publishing never fails a
request and never delays one: a thread does it after the commit.
"""

from __future__ import annotations

import logging
import queue
import threading
from typing import Any, Literal

from celery import Celery

log = logging.getLogger(__name__)

QueueName = Literal["cpu", "gpu", "inspect"]
RUN_JOB = "tersor.run_job"


def broker_options() -> dict[str, Any]:
    """Return Celery settings that sender and worker share.

    The timeouts matter: with a frozen broker, a send without them hangs.
    """
    return {
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        "broker_transport_options": {
            "socket_timeout": 10,
            "socket_connect_timeout": 3,
            "retry_on_timeout": False,
        },
        "task_ignore_result": True,
        "task_default_queue": "cpu",
        "task_serializer": "json",
        "accept_content": ["json"],
    }


class Publisher:
    """Sends wake-up messages from a thread of its own, in order."""

    def __init__(self, broker_url: str) -> None:
        self._celery = Celery("tersor-publisher", broker=broker_url)
        self._celery.conf.update(broker_options())
        self._waiting: queue.SimpleQueue[tuple[str, QueueName] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def send(self, job_id: str, queue_name: QueueName) -> None:
        """Queue the message that tells a worker to look at `job_id`; returns at once."""
        with self._lock:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="publisher", daemon=True)
                self._thread.start()
        self._waiting.put((job_id, queue_name))

    def close(self, timeout_s: float = 3.0) -> None:
        """Send what waits, then end the thread; gives up after `timeout_s`."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join(timeout_s)
        self._celery.close()

    def check(self, timeout_s: float = 2.0) -> None:
        """Raise whatever the broker's client raises unless the broker answers a ping."""
        options = {
            "socket_timeout": timeout_s,
            "socket_connect_timeout": timeout_s,
            "max_retries": 1,
            "interval_start": 0,
        }
        with self._celery.connection_for_write(
            connect_timeout=timeout_s, transport_options=options
        ) as connection:
            connection.default_channel.client.ping()

    def _run(self) -> None:
        while (message := self._waiting.get()) is not None:
            job_id, queue_name = message
            try:
                self._celery.send_task(RUN_JOB, args=[job_id], queue=queue_name, retry=False)
            except Exception as error:  # whatever the broker's client raises: the sweeper re-sends
                log.warning(
                    "wake-up message not sent, the sweeper will: %s", error,
                    extra={"job_id": job_id},
                )  # fmt: skip
