"""HTTP: one request with its retries, and problem documents turned into exceptions.

What is repeated, and why. GET, HEAD and DELETE have the same effect twice as once, so they are
repeated after any lost connection and after 502, 503 and 504. So is a POST that creates: all its
tries carry one `Idempotency-Key`, by which the service gives the first answer again instead of
making a second thing. Any other POST, as one that renews the webhook secret, is repeated only when
it surely did nothing: the connection never came about, or the service answered 429 or 503 with
`Retry-After`, which it does before it stores anything. If its answer was lost, the caller gets a
`TransportError` with `sent=True` and can look.
"""

from __future__ import annotations

import json
import random
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

import httpx

from tersor._version import get_version
from tersor.access import Access
from tersor.errors import TransportError
from tersor.problems import read_problem

Query = Mapping[str, str | int | None]

_RETRIES = 4
_BACKOFF_S = 0.25
_BACKOFF_MAX_S = 8.0
_RETRY_AFTER_MAX_S = 60.0
_SAFE_METHODS = frozenset({"GET", "HEAD", "DELETE"})
_BUSY = frozenset({429, 503})
_GATEWAY = frozenset({502, 504})
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)


class Transport:
    """Speaks to one service with one key.

    Args:
        access: Address and key.
        timeout_s: Longest silence of the service before a request is given up.
        http: Seam for tests; None for real connections.
        sleep: Seam for tests.
    """

    def __init__(
        self,
        access: Access,
        timeout_s: float,
        http: httpx.BaseTransport | None = None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = access.url
        self.timeout_s = timeout_s
        self.sleep = sleep
        headers = {"User-Agent": f"tersor/{get_version()}", "Accept": "application/json"}
        if access.api_key:
            headers["Authorization"] = f"Bearer {access.api_key}"
        is_own = _is_loopback(access.url)
        self._http = httpx.Client(
            base_url=access.url,
            headers=headers,
            timeout=httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            # idle connections are dropped before the service does, so no POST meets a closed one
            limits=httpx.Limits(keepalive_expiry=3.0),
            trust_env=not is_own,  # a proxy cannot reach our own machine
            # reading the certificates of all authorities takes longer than most requests
            verify=not (is_own and access.url.startswith("http:")),
            transport=http,
        )

    @property
    def checking_timeout_s(self) -> float:
        """Longest wait for an answer that comes when a whole file has been checked."""
        return max(self.timeout_s, 300.0)

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def get(
        self, path: str, params: Query | None = None, *, headers: Mapping[str, str] | None = None,
        timeout_s: float | None = None,
    ) -> httpx.Response:  # fmt: skip
        """Read something."""
        return self._request("GET", path, params=params, headers=headers, timeout_s=timeout_s)

    def post(
        self, path: str, body: Mapping[str, Any] | None = None, *, repeatable: bool = False,
        timeout_s: float | None = None,
    ) -> httpx.Response:  # fmt: skip
        """Send JSON. `repeatable` says that doing it twice is as good as once."""
        return self._send_json("POST", path, body, repeatable=repeatable, timeout_s=timeout_s)

    def create(
        self, path: str, body: Mapping[str, Any] | None = None, *, key: str | None = None,
        headers: Mapping[str, str] | None = None, timeout_s: float | None = None,
    ) -> httpx.Response:  # fmt: skip
        """Make a thing once, however often it takes to ask; `key` lets a caller ask once more."""
        headers = {**(headers or {}), "Idempotency-Key": key or str(uuid.uuid4())}
        return self._send_json(
            "POST", path, body, headers=headers, repeatable=True, timeout_s=timeout_s
        )

    def upload(
        self, path: str, content: Callable[[], Iterable[bytes]], headers: Mapping[str, str]
    ) -> httpx.Response:
        """Make a thing, once, of a body that is streamed; `content` opens it for each try."""
        return self._request(
            "POST", path, headers={**headers, "Idempotency-Key": str(uuid.uuid4())},
            content=content, repeatable=True,
            # after the last byte the service checks the file, which takes longer than an answer
            timeout_s=self.checking_timeout_s,
        )  # fmt: skip

    def head(self, path: str) -> httpx.Response:
        """Read the headers alone."""
        return self._request("HEAD", path)

    def append(
        self, path: str, content: Callable[[], Iterable[bytes]], headers: Mapping[str, str]
    ) -> httpx.Response:
        """Send a piece of a file. If its answer is lost, ask how much has arrived."""
        timeout_s = max(self.timeout_s, 60.0)  # the service answers when the piece is on its disk
        return self._request("PATCH", path, headers=headers, content=content, timeout_s=timeout_s)

    def patch(self, path: str, body: Mapping[str, Any]) -> httpx.Response:
        """Set fields, which twice is as good as once."""
        return self._send_json("PATCH", path, body, repeatable=True)

    def delete(self, path: str) -> None:
        """Remove something."""
        self._request("DELETE", path)

    def pause(self, tries: int) -> None:
        """Wait before another try, longer after more of them."""
        self.sleep(_backoff_s(tries))

    def pages(self, path: str, params: Query, limit: int | None) -> Iterator[dict[str, Any]]:
        """Yield the items of a list, fetching page after page, `limit` items at most."""
        left = limit
        after: str | None = None
        while left is None or left > 0:
            size = 100 if left is None else min(100, left)
            page = self.get(path, {**params, "limit": size, "after": after}).json()
            yield from page["data"]
            after = page.get("next_after")
            if not page["has_more"] or after is None:
                return
            left = left if left is None else left - len(page["data"])

    @contextmanager
    def stream(self, path: str, headers: Mapping[str, str]) -> Iterator[httpx.Response]:
        """Open a download; reading it may raise `httpx.TransportError`."""
        response = self._request("GET", path, headers=headers, streamed=True)
        try:
            yield response
        finally:
            response.close()

    def _send_json(
        self, method: str, path: str, body: Mapping[str, Any] | None, *, repeatable: bool,
        headers: Mapping[str, str] | None = None, timeout_s: float | None = None,
    ) -> httpx.Response:  # fmt: skip
        content = None if body is None else json.dumps(body).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        return self._request(
            method, path, headers={**kind, **(headers or {})}, content=lambda: content,
            repeatable=repeatable, timeout_s=timeout_s,
        )  # fmt: skip

    def _request(
        self,
        method: str,
        path: str,
        *,
        params: Query | None = None,
        headers: Mapping[str, str] | None = None,
        content: Callable[[], bytes | Iterable[bytes] | None] = lambda: None,
        repeatable: bool = False,
        timeout_s: float | None = None,
        streamed: bool = False,
    ) -> httpx.Response:
        repeatable = repeatable or method in _SAFE_METHODS
        tries = 0
        unclear = False  # whether an earlier try may have been done
        while True:
            request = self._http.build_request(
                method,
                path,
                params={name: value for name, value in (params or {}).items() if value is not None},
                headers=headers,
                content=content(),
                timeout=httpx.USE_CLIENT_DEFAULT
                if timeout_s is None
                else httpx.Timeout(timeout_s, connect=min(10.0, timeout_s)),
            )
            try:
                response = self._http.send(request, stream=streamed)
            except httpx.TransportError as error:
                sent = not isinstance(error, _NEVER_SENT)
                unclear = unclear or sent
                if tries >= _RETRIES or (sent and not repeatable):
                    raise self._lost(error, sent=unclear) from error
                wait_s = _backoff_s(tries)
            else:
                if response.is_success or response.status_code == 304:
                    return response
                if streamed:
                    response.read()
                problem = read_problem(response)
                if method == "DELETE" and response.status_code == 404 and unclear:
                    return response  # the try whose answer was lost did it
                if tries >= _RETRIES or not _may_repeat(response, repeatable):
                    raise problem
                if (problem.retry_after_s or 0.0) > _RETRY_AFTER_MAX_S:
                    raise problem
                wait_s = max(problem.retry_after_s or 0.0, _backoff_s(tries))
            tries += 1
            self.sleep(wait_s)

    def _lost(self, error: httpx.TransportError, *, sent: bool) -> TransportError:
        if not sent:
            return TransportError(
                f"Cannot connect to {self.url}: is the service running? Start one with "
                f"`tersor up`, or give its address (--url or TERSOR_URL)."
            )
        why = "did not answer in time" if isinstance(error, httpx.TimeoutException) else "hung up"
        return TransportError(
            f"The service at {self.url} {why}; what was asked may have been done all the same: "
            f"look before you repeat it.",
            code="timeout" if isinstance(error, httpx.TimeoutException) else "connection_lost",
            sent=True,
        )


def path_of(*parts: str) -> str:
    """Return `/v1/…` from parts, each escaped.

    Raises:
        ValueError: A part is empty: it would name another resource.
    """
    if not all(parts):
        raise ValueError("the id is empty")
    return "/v1/" + "/".join(quote(part, safe="") for part in parts)


def _may_repeat(response: httpx.Response, repeatable: bool) -> bool:
    if response.status_code in _BUSY:
        return repeatable or "Retry-After" in response.headers
    return response.status_code in _GATEWAY and repeatable


def _backoff_s(tries: int) -> float:
    # full jitter, so that many clients of a service that comes back do not call all at once
    return random.uniform(0.0, min(_BACKOFF_MAX_S, _BACKOFF_S * 2**tries))


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
