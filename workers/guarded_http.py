"""POST to an address that somebody else chose: only to public ones, without redirects, in time.

The name is looked up here, each address is checked, and the connection is made to the very address
that was checked: a name that stands for another address a moment later gains nothing.
"""

from __future__ import annotations

import socket
import ssl
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import httpcore

from app.webhooks.targets import Network, TargetRefused, check_address


def post(
    url: str,
    headers: Mapping[str, str],
    body: bytes,
    *,
    allowed: Sequence[Network],
    timeout_s: float,
    context: ssl.SSLContext | None = None,
) -> int:
    """Send the body and return the status of the answer, whose own body is not read.

    Args:
        url: http or https.
        headers: Of the request; `Host` and `Content-Length` are added.
        body: Its bytes.
        allowed: Networks that need not be public.
        timeout_s: For everything together, however slowly the other side answers.
        context: TLS settings; by default those of the system.

    Raises:
        TargetRefused: No address of the name may be connected to.
        httpcore.NetworkError, httpcore.TimeoutException, httpcore.ProtocolError: It failed.
    """
    backend = _GuardedBackend(allowed, time.monotonic() + timeout_s)
    with (
        httpcore.ConnectionPool(
            ssl_context=context or ssl.create_default_context(), network_backend=backend
        ) as pool,
        pool.stream("POST", url, headers=list(headers.items()), content=body) as response,
    ):
        return response.status


class _GuardedBackend(httpcore.NetworkBackend):
    def __init__(self, allowed: Sequence[Network], deadline_s: float) -> None:
        self._allowed = allowed
        self._deadline_s = deadline_s
        self._plain = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        error: Exception = httpcore.ConnectError("the name has no address")
        for address in _look_up(host, port):
            try:
                check_address(address, self._allowed)
                stream = self._plain.connect_tcp(
                    address, port, _left(self._deadline_s, httpcore.ConnectTimeout)
                )
                return _TimedStream(stream, self._deadline_s)
            except (TargetRefused, httpcore.ConnectError) as failed:
                error = failed
        raise error


class _TimedStream(httpcore.NetworkStream):
    """A connection that ends at a time; the timeouts of httpcore begin anew with each byte."""

    def __init__(self, stream: httpcore.NetworkStream, deadline_s: float) -> None:
        self._stream = stream
        self._deadline_s = deadline_s

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, _left(self._deadline_s, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, _left(self._deadline_s, httpcore.WriteTimeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        left_s = _left(self._deadline_s, httpcore.ConnectTimeout)
        stream = self._stream.start_tls(ssl_context, server_hostname, left_s)
        return _TimedStream(stream, self._deadline_s)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _look_up(host: str, port: int) -> list[str]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise httpcore.ConnectError(f"the name is not known: {error}") from error
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _left(deadline_s: float, late: type[httpcore.TimeoutException]) -> float:
    left_s = deadline_s - time.monotonic()
    if left_s <= 0:
        raise late("it took too long")
    return left_s
