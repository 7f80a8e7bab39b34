"""The threads in every worker that send what waits in the outbox of webhooks.

A message may arrive twice, if the worker dies after sending it: it has the same `webhook-id` then.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import ThreadPoolExecutor
from urllib.parse import urlsplit

import httpcore
from sqlalchemy.exc import SQLAlchemyError
from standardwebhooks import Webhook

from app.db import Database, utc_now
from app.settings import Settings
from app.version import VERSION
from app.webhooks import outbox
from app.webhooks.secrets import list_secrets
from app.webhooks.tables import WebhookDelivery
from app.webhooks.targets import TargetRefused
from workers.guarded_http import post

log = logging.getLogger(__name__)

_LOOK_S = 1.0
_AT_ONCE = 4
_GONE = 410


class WebhookSender:
    """Looks into the outbox every second."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings = settings.webhook
        self._database = database
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        """Begin to send."""
        self._thread.start()

    def stop(self) -> None:
        """Take up nothing more; what is on its way is tried again by another worker."""
        self._stopped.set()

    def send_due(self) -> int:
        """Send what is due, a few at a time; return how many were tried."""
        with self._database.read() as session:
            if not outbox.has_due(session, utc_now()):
                return 0
        hold_s = 2 * self._settings.timeout_s + 60.0
        with self._database.write() as session:
            due = outbox.take_due(session, utc_now(), hold_s, _AT_ONCE)
        with ThreadPoolExecutor(_AT_ONCE, "webhook") as pool:
            for _done in pool.map(self._send, due):
                pass
        return len(due)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                while self.send_due() and not self._stopped.is_set():
                    pass
            except SQLAlchemyError as error:
                log.warning("webhooks: database away: %s", error)
            except Exception:  # a sender that ended would not be missed by anyone
                log.exception("webhooks failed")
            self._stopped.wait(_LOOK_S)

    def _send(self, delivery: WebhookDelivery) -> None:
        status: int | None = None
        final = False
        try:
            status = post(
                delivery.url,
                self._sign(delivery),
                delivery.body.encode(),
                allowed=self._settings.private_networks,
                timeout_s=self._settings.timeout_s,
            )
            error = f"answered {status}"
            final = status == _GONE
        except TargetRefused as refused:
            error, final = str(refused), True
        except (
            httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError,
            httpcore.UnsupportedProtocol,
        ) as failed:  # fmt: skip
            error = f"{type(failed).__name__}: {failed}"
        with self._database.write() as session:
            if status is not None and 200 <= status < 300:
                outbox.note_delivered(session, delivery, status)
                outcome = "delivered"
            else:
                outcome = outbox.note_failed(session, delivery, error, status, final=final)
        log.log(
            logging.INFO if outcome == "delivered" else logging.WARNING,
            "webhook %s to %s, attempt %d: %s", delivery.type, urlsplit(delivery.url).hostname,
            delivery.attempts, outcome if outcome == "delivered" else f"{outcome}, {error}",
            extra={"job_id": delivery.job_id, "webhook_id": delivery.id},
        )  # fmt: skip

    def _sign(self, delivery: WebhookDelivery) -> dict[str, str]:
        """Return the headers of Standard Webhooks."""
        now = utc_now()
        with self._database.read() as session:
            secrets = list_secrets(session, delivery.project_id)
        return {
            "Content-Type": "application/json",
            "User-Agent": f"Tersor/{VERSION}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(int(now.timestamp())),
            "webhook-signature": " ".join(
                Webhook(secret).sign(delivery.id, now, delivery.body) for secret in secrets
            ),
        }
