"""Webhooks sent to a real receiver, and checked by a stock verifier."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import update
from standardwebhooks import Webhook, WebhookVerificationError

from app.db import Database, utc_now
from app.settings import Settings, WebhookSettings
from app.webhooks import outbox
from app.webhooks.secrets import renew_secret
from app.webhooks.tables import WebhookDelivery
from app.webhooks.targets import check_address
from tests.workers.rows import PROJECT_ID, add_job, add_project
from workers import endings, guarded_http
from workers.failures import worker_lost
from workers.lease import claim
from workers.webhooks import WebhookSender

pytestmark = pytest.mark.slow

LOOPBACK = (ip_network("127.0.0.0/8"),)


class Receiver(ThreadingHTTPServer):
    """Keeps what it gets, and answers as it is told."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.got: list[tuple[str, dict[str, str], bytes]] = []
        self.answers: list[int] = []
        self.location = ""
        self.drip_s = 0.0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/hook?token=1"


class _Handler(BaseHTTPRequestHandler):
    server: Receiver

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.got.append((self.path, dict(self.headers), body))
        if self.server.drip_s:
            for byte in b"HTTP/1.1 200 OK\r\nX: " + b"x" * 1000:
                self.wfile.write(bytes([byte]))
                time.sleep(self.server.drip_s)
        self.send_response(self.server.answers.pop(0) if self.server.answers else 204)
        if self.server.location:
            self.send_header("Location", self.server.location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    server = Receiver()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def sender(settings: Settings, database: Database) -> WebhookSender:
    allow(settings, LOOPBACK)
    return WebhookSender(settings, database)


@pytest.fixture
def secret(database: Database) -> str:
    add_project(database)
    with database.write() as session:
        return renew_secret(session, PROJECT_ID).secret


def allow(settings: Settings, networks: Any, timeout_s: float = 5.0) -> None:
    settings.__dict__["webhook"] = WebhookSettings(private_networks=networks, timeout_s=timeout_s)


def end_job(database: Database, url: str, status: str = "succeeded") -> str:
    """Run a job's row through a worker's writes."""
    webhook = {"url": url, "events": ["succeeded", "failed", "cancelled"]}
    job_id = add_job(database, spec={"method": "ptq", "webhook": webhook})
    with database.write() as session:
        claimed = claim(session, ["cpu"], "w", 30)
    assert claimed is not None
    with database.write() as session:
        if status == "failed":
            endings.fail(session, job_id, claimed.fence, worker_lost(3))
        else:
            endings.succeed(session, job_id, claimed.fence, {"recommended": None}, [])
    return job_id


def get(database: Database, job_id: str) -> WebhookDelivery:
    with database.read() as session:
        return next(row for row in session.query(WebhookDelivery).all() if row.job_id == job_id)


def pass_time(database: Database, job_id: str) -> None:
    with database.write() as session:
        session.execute(
            update(WebhookDelivery)
            .where(WebhookDelivery.job_id == job_id)
            .values(next_attempt_at=utc_now() - timedelta(seconds=1))
        )


@pytest.mark.parametrize("status", ["succeeded", "failed"])
def test_a_stock_verifier_accepts_what_arrives(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str, status: str
) -> None:
    job_id = end_job(database, receiver.url, status)
    assert sender.send_due() == 1
    assert sender.send_due() == 0
    [(path, headers, body)] = receiver.got
    assert path == "/hook?token=1"
    message = Webhook(secret).verify(body, headers)
    assert message["type"] == f"job.{status}"
    assert message["data"]["id"] == job_id
    assert message["data"]["finished"] is True
    assert message["data"]["urls"]["self"] == f"/v1/jobs/{job_id}"
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(body.replace(b"job_", b"jab_"), headers)
    delivery = get(database, job_id)
    assert (delivery.status, delivery.attempts, delivery.response_status) == ("delivered", 1, 204)
    assert headers["webhook-id"] == delivery.id


def test_after_a_change_of_the_secret_both_verify(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    with database.write() as session:
        fresh = renew_secret(session, PROJECT_ID).secret
    end_job(database, receiver.url)
    sender.send_due()
    [(_, headers, body)] = receiver.got
    for each in (secret, fresh):
        Webhook(each).verify(body, headers)


def test_a_failed_try_is_repeated_with_the_same_id_and_body(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    receiver.answers = [500, 302, 200]
    receiver.location = receiver.url  # not followed
    job_id = end_job(database, receiver.url)
    for attempt, answered in enumerate([500, 302, 200], 1):
        assert sender.send_due() == 1
        delivery = get(database, job_id)
        assert (delivery.attempts, delivery.response_status) == (attempt, answered)
        assert sender.send_due() == 0  # not before its time
        pass_time(database, job_id)
    assert delivery.status == "delivered"
    assert len({headers["webhook-id"] for _, headers, _ in receiver.got}) == 1
    assert len({body for _, _, body in receiver.got}) == 1
    assert len(receiver.got) == 3


def test_it_is_given_up_after_a_day(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    receiver.answers = [503] * 20
    job_id = end_job(database, receiver.url)
    waited_s = 0.0
    for _ in range(20):
        pass_time(database, job_id)
        if not sender.send_due():
            break
        delivery = get(database, job_id)
        if delivery.status == "pending":
            waited_s += (delivery.next_attempt_at - utc_now()).total_seconds()
    assert get(database, job_id).status == "failed"
    assert get(database, job_id).attempts == len(outbox.DELAYS_S) + 1
    assert 20 * 3600 < waited_s < 27 * 3600


def test_a_receiver_that_is_gone_for_good_is_not_asked_again(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    receiver.answers = [410]
    job_id = end_job(database, receiver.url)
    sender.send_due()
    assert get(database, job_id).status == "failed"


def test_a_private_address_is_not_connected_to_by_whatever_name(
    database: Database, receiver: Receiver, settings: Settings, secret: str
) -> None:
    allow(settings, ())
    sender = WebhookSender(settings, database)
    port = receiver.server_port
    for host in ("localhost", "127.0.0.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"):
        job_id = end_job(database, f"http://{host}:{port}/")
        sender.send_due()
        delivery = get(database, job_id)
        assert delivery.status == "failed", host
        assert "not public" in (delivery.error or ""), host
    assert receiver.got == []


def test_a_name_that_changes_after_it_was_checked_gains_nothing(
    database: Database,
    receiver: Receiver,
    settings: Settings,
    secret: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The name is public when it is asked for first, and the receiver's own the next time."""
    allow(settings, (), timeout_s=1.0)
    sender = WebhookSender(settings, database)
    asked: list[str] = []
    really = socket.getaddrinfo

    def look_up(host: str, port: int, *rest: Any, **options: Any) -> Any:
        if not host.endswith(".example"):
            return really(host, port, *rest, **options)
        asked.append(host)
        address = "203.0.113.1" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    monkeypatch.setattr(guarded_http, "check_address", _check_documentation_too)
    job_id = end_job(database, f"http://rebind.example:{receiver.server_port}/")
    sender.send_due()
    assert asked == ["rebind.example"]  # once: what was checked is what is connected to
    pass_time(database, job_id)
    sender.send_due()
    assert get(database, job_id).status == "failed"
    assert receiver.got == []


def _check_documentation_too(address: str, allowed: Any) -> None:
    check_address(address, [ip_network("203.0.113.0/24")])  # no host has such an address


def test_a_receiver_that_answers_byte_by_byte_is_given_up_in_time(
    database: Database, receiver: Receiver, settings: Settings, secret: str
) -> None:
    allow(settings, LOOPBACK, timeout_s=1.0)
    receiver.drip_s = 0.05
    job_id = end_job(database, receiver.url)
    began_s = time.monotonic()
    WebhookSender(settings, database).send_due()
    assert time.monotonic() - began_s < 4
    assert "Timeout" in (get(database, job_id).error or "")


def test_what_a_dead_sender_had_taken_is_sent_by_another(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    job_id = end_job(database, receiver.url)
    with database.write() as session:
        taken = outbox.take_due(session, utc_now(), hold_s=60, at_once=4)
    assert [each.job_id for each in taken] == [job_id]
    assert sender.send_due() == 0
    pass_time(database, job_id)
    assert sender.send_due() == 1
    with database.write() as session:  # the first wakes up, and has no say any more
        outbox.note_failed(session, taken[0], "late", None, final=True)
    assert get(database, job_id).status == "delivered"


def test_a_started_sender_sends_by_itself(
    database: Database, receiver: Receiver, sender: WebhookSender, secret: str
) -> None:
    sender.start()
    end_job(database, receiver.url)
    deadline = time.monotonic() + 10
    while not receiver.got:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    sender.stop()
    assert json.loads(receiver.got[0][2])["type"] == "job.succeeded"
