"""Many clients in one process: HTTP/1.1 by hand, so that asking costs less than answering."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.service import submit

_PIECE = bytes(1 << 20)


@dataclass
class Answers:
    """What many clients got."""

    seconds: float = 0.0
    latencies_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


class Connection:
    """One connection that is kept."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, head: str
    ) -> None:
        self._reader, self._writer, self._head = reader, writer, head

    async def ask(
        self, method: str, path: str, *, pieces: int = 0, **headers: str
    ) -> tuple[int, dict[str, str]]:
        """Return status and headers of an answer; `pieces` of a MiB each are the body."""
        lines = [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
        if pieces:
            lines.append(f"Content-Length: {pieces * len(_PIECE)}")
        request = "\r\n".join([f"{method} {path} HTTP/1.1", self._head, *lines, "", ""])
        self._writer.write(request.encode())
        for _ in range(pieces):
            self._writer.write(_PIECE)
            await self._writer.drain()
        answer = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        told = dict(line.lower().split(": ", 1) for line in answer[1:] if line)
        await self._reader.readexactly(int(told.get("content-length", "0")))
        return int(answer[0].split()[1]), told


class Computing:
    """Keeps a worker busy with a job, one after the other."""

    def __init__(self, client: httpx.Client, model: str, dataset: str) -> None:
        self._client, self._model, self._dataset = client, model, dataset
        self._stopped = threading.Event()
        self._job = self._submit()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Computing:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._stopped.set()
        self._thread.join()
        self._client.post(self._job["urls"]["cancel"])

    def path(self) -> str:
        """Return where to ask for the job that is computed now."""
        return str(self._job["urls"]["self"])

    def _submit(self) -> dict[str, Any]:
        return submit(self._client, self._model, self._dataset, samples=128)

    def _run(self) -> None:
        while not self._stopped.wait(0.5):
            if self._client.get(self.path()).json()["finished"]:
                self._job = self._submit()


@asynccontextmanager
async def connected(client: httpx.Client) -> AsyncIterator[Connection]:
    """Yield a connection with the key of a client."""
    url = urlsplit(str(client.base_url))
    reader, writer = await asyncio.open_connection(url.hostname, url.port)
    head = f"Host: {url.netloc}\r\nAuthorization: {client.headers['Authorization']}"
    try:
        yield Connection(reader, writer, head)
    finally:
        writer.close()


def poll(
    client: httpx.Client, path: Callable[[], str], clients: int, seconds: float,
    *, every_s: float = 0.0, **headers: str,
) -> Answers:  # fmt: skip
    """Let many clients ask for a path, each anew once it is answered, or every so often.

    Each sends the tag of the last answer with its next request, as a client that waits does.
    """
    found = Answers()

    async def one(number: int, until_s: float) -> None:
        async with connected(client) as connection:
            await asyncio.sleep(every_s * number / clients)
            tag: dict[str, str] = {}
            while (began_s := time.perf_counter()) < until_s:
                status, told = await connection.ask("GET", path(), **headers, **tag)
                found.latencies_ms.append(1e3 * (time.perf_counter() - began_s))
                if status not in (200, 304):
                    found.errors.append(f"status {status}")
                tag = {"If_None_Match": told["etag"]} if "etag" in told else {}
                await asyncio.sleep(max(0.0, began_s + every_s - time.perf_counter()))

    async def all_of_them() -> None:
        began_s = time.perf_counter()
        tasks = [one(number, began_s + seconds) for number in range(clients)]
        ended = await asyncio.gather(*tasks, return_exceptions=True)
        found.seconds = time.perf_counter() - began_s
        found.errors += [repr(each) for each in ended if isinstance(each, BaseException)]

    asyncio.run(all_of_them())
    return found


def upload(client: httpx.Client, paths: list[str], mib: int) -> Answers:
    """Send so many MiB to each of the uploads at once, in one piece each."""
    found = Answers()

    async def one(path: str) -> None:
        async with connected(client) as connection:
            status, _ = await connection.ask(
                "PATCH", path, pieces=mib, Tus_Resumable="1.0.0", Upload_Offset="0",
                Content_Type="application/offset+octet-stream",
            )  # fmt: skip
            if status != 204:
                found.errors.append(f"status {status}")

    async def all_of_them() -> None:
        began_s = time.perf_counter()
        ended = await asyncio.gather(*map(one, paths), return_exceptions=True)
        found.seconds = time.perf_counter() - began_s
        found.errors += [repr(each) for each in ended if isinstance(each, BaseException)]

    asyncio.run(all_of_them())
    return found
