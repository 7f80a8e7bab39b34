"""A worker process: its parts, in the order they start, and in the order they stop."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from celery import signals

from app.db import Database
from app.queue import Publisher
from app.settings import Settings
from app.storage import open_store
from workers.celery_app import create_celery
from workers.sandbox import ALWAYS, missing_layers
from workers.spawner import Spawner
from workers.supervisor import Supervisor
from workers.sweeper import Sweeper
from workers.tasks import register_tasks
from workers.webhooks import WebhookSender

log = logging.getLogger(__name__)

_GIVE_BACK_TIMEOUT_S = 3.0
_STOP_TIMEOUT_S = 1.0


class Worker:
    """Receives wake-up calls from some queues, and runs up to `slots` jobs at a time."""

    def __init__(self, settings: Settings, queues: Sequence[str], slots: int) -> None:
        self._settings = settings
        self._queues = tuple(queues)
        self._slots = slots
        self._stopping = threading.Event()
        self._status = 1  # unless we were told to stop
        self._publisher = Publisher(settings.broker_url)
        self._database = Database(settings, self._publisher)
        store = open_store(settings.storage_url)
        self._spawner = Spawner(on_ready=self._on_zygote_ready)
        self._supervisor = Supervisor(
            settings, self._database, store, self._spawner, self._queues, slots, self._stopping
        )
        self._sweeper = Sweeper(
            settings,
            self._database,
            store,
            queues=self._queues,
            slots=slots,
            running=lambda: self._supervisor.running,
            machine=self._describe_machine,
        )
        self._webhooks = WebhookSender(settings, self._database)
        self._celery = create_celery(settings)
        register_tasks(self._celery, self._supervisor.work_off)

    def run(self) -> int:
        """Work until SIGTERM or SIGINT, then end the process."""
        signals.worker_shutting_down.connect(self._on_shutdown, weak=False)
        stopper = threading.Thread(target=self._stop, name="stopper", daemon=True)
        stopper.start()
        self._spawner.start()
        self._sweeper.start()
        self._webhooks.start()
        receiver = self._celery.Worker(
            hostname=f"{'-'.join(self._queues)}-{os.getpid()}@{socket.gethostname()}",
            queues=list(self._queues),
            concurrency=self._slots,
            pool="threads",
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            quiet=True,
            loglevel=logging.getLevelName(logging.getLogger().level),
        )
        log.info("worker for %s with %d slots", ", ".join(self._queues), self._slots)
        try:
            receiver.start()
            self._status = int(receiver.exitcode or 0)
        except Exception:
            log.exception("the receiver of messages failed")
        finally:
            self._stopping.set()
        stopper.join()  # it ends the process
        return self._status

    def _describe_machine(self) -> dict[str, Any]:
        """Return what the zygote found, and of the walls those that jobs really get."""
        machine = dict(self._spawner.machine)
        if self._settings.sandbox == "off" and "sandbox" in machine:
            machine["sandbox"] = {
                name: stands and name in ALWAYS for name, stands in machine["sandbox"].items()
            }
        return machine

    def _on_zygote_ready(self) -> None:
        log.info("ready to run jobs: %s", dict(self._spawner.machine))
        mode = self._settings.sandbox
        missing = ", ".join(missing_layers(self._spawner.machine.get("sandbox", {})))
        if mode == "off":
            log.warning("TERSOR_SANDBOX=off: models run with limits, but without walls")
        elif missing and mode == "require":
            log.error(
                "this kernel lacks layers of the sandbox: %s. TERSOR_SANDBOX=require lets no job "
                "run without them; use a kernel that has them, or TERSOR_SANDBOX=on", missing,
            )  # fmt: skip
            self._stopping.set()
        elif missing:
            log.warning("this kernel lacks layers of the sandbox: %s", missing)
        self._sweeper.poke()

    def _on_shutdown(self, **_details: Any) -> None:
        self._status = 0
        self._stopping.set()

    def _stop(self) -> None:
        """Once told to stop: let jobs be given back, say good-bye, and end the process.

        It ends the process itself, since Celery does not while it waits for a lost broker.
        """
        self._stopping.wait()
        log.info("stopping; running jobs go back into the queue")
        deadline = time.monotonic() + _GIVE_BACK_TIMEOUT_S
        while self._supervisor.running and time.monotonic() < deadline:
            time.sleep(0.02)
        self._webhooks.stop()
        self._spawner.stop()
        self._sweeper.stop(_STOP_TIMEOUT_S)
        self._publisher.close(_STOP_TIMEOUT_S)
        log.info("stopped")
        logging.shutdown()
        os._exit(self._status)
