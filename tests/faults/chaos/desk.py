"""A customer's way of asking: until there is an answer, and sometimes hanging up."""

from __future__ import annotations

import json
import random
import socket
import time
from typing import Any
from urllib.parse import urlsplit

import httpx

from tests.faults.chaos.ledger import Ledger

_GIVE_UP_S = 120.0


class GaveUp(Exception):
    """What a customer waited for did not come."""


class Desk:
    """Requests of one customer. What is neither an answer nor an announced refusal is noted."""

    def __init__(self, client: httpx.Client, ledger: Ledger, random: random.Random) -> None:
        self.client = client
        self._ledger = ledger
        self._random = random

    def ask(self, method: str, url: str, expected: set[int], **request: Any) -> httpx.Response:
        """Repeat a request that may be repeated until one of the expected answers comes.

        `extensions["tries"]` of the answer says how often it was sent.

        Raises:
            GaveUp: none came in two minutes.
        """
        deadline = time.monotonic() + _GIVE_UP_S
        tries = 0
        while time.monotonic() < deadline:
            tries += 1
            try:
                answer = self.client.request(method, url, **request)
            except httpx.HTTPError:
                self._ledger.count("connections lost")
                time.sleep(0.2)
                continue
            if answer.status_code in expected:
                answer.extensions["tries"] = tries
                return answer
            if answer.status_code == 503:
                self._ledger.count("answers 503")
            else:
                self._ledger.complain(
                    f"{method} {url} got {answer.status_code}: {answer.text[:300]}"
                )
            time.sleep(0.5)
        raise GaveUp(f"{method} {url} got no answer")

    def hang_up(self, url: str, body: bytes, headers: dict[str, str]) -> None:
        """Send a POST, or a part of it, and close the connection without reading."""
        place = urlsplit(str(self.client.base_url))
        lines = [f"POST {url} HTTP/1.1", f"Host: {place.netloc}", f"Content-Length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        lines += [f"Authorization: {self.client.headers['authorization']}"]
        request = "\r\n".join(lines).encode() + b"\r\n\r\n" + body
        if self._random.random() < 0.3:
            request = request[: self._random.randrange(len(request))]
        try:
            with socket.create_connection((place.hostname, place.port), 5) as connection:
                connection.sendall(request)
                time.sleep(self._random.choice((0.0, 0.002, 0.01, 0.03, 0.1)))
        except OSError:
            self._ledger.count("connections lost")

    def submit(self, body: dict[str, Any], key: str) -> str:
        """Submit a job under a key, perhaps hanging up first; return the id of the only one."""
        headers = {"Idempotency-Key": key}
        for _ in range(self._random.choice((0, 0, 1, 2))):
            self._ledger.count("requests cut and sent again")
            content = json.dumps(body).encode()
            self.hang_up("/v1/jobs", content, headers | {"Content-Type": "application/json"})
        answer = self.ask("POST", "/v1/jobs", {202}, json=body, headers=headers)
        return str(answer.json()["id"])

    def submit_once(self, body: dict[str, Any]) -> str | None:
        """Submit a job without a key; None if nobody knows whether it arrived."""
        while True:
            try:
                answer = self.client.post("/v1/jobs", json=body)
            except httpx.ConnectError:
                time.sleep(0.2)  # it surely did nothing
                continue
            except httpx.HTTPError:
                return None
            if answer.status_code == 202:
                return str(answer.json()["id"])
            if answer.status_code != 503:
                self._ledger.complain(f"POST /v1/jobs got {answer.status_code}: {answer.text}")
            time.sleep(0.5)
