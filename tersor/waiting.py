"""Waits for one job to end: told of changes as they come, and not shaken by a restart."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import httpx

from tersor.errors import TransportError, WaitTimeout
from tersor.transport import Transport, path_of
from tersor.views import Event

if TYPE_CHECKING:
    from tersor.jobs import Job

OnEvent = Callable[[Event], None]

_WAIT_S = 30.0
_EVENTS_WAIT_S = 5.0  # with events, some of which come without a change of the job itself
_OUTAGE_S = 120.0
_LEAST_PAUSE_S = 0.1


class Waiter:
    """Looks at a job again and again, by requests that the service holds until it changes.

    Args:
        transport: The service.
        read: Makes a job of an answer.
        events: Yields a job's events after an id.
    """

    def __init__(
        self,
        transport: Transport,
        read: Callable[[Mapping[str, Any]], Job],
        events: Callable[[str, int | str | None], Iterator[Event]],
    ) -> None:
        self._transport = transport
        self._read = read
        self._events = events

    def wait(
        self,
        job_id: str,
        timeout_s: float | None,
        on_event: OnEvent | None,
        on_change: Callable[[Job], None] | None,
    ) -> Job:
        """Return the job once it is finished.

        Raises:
            WaitTimeout: Time is up; the job goes on.
            TransportError: The service was away for two minutes.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        last_event: int | str | None = None
        longest_s = _WAIT_S if on_event is None else _EVENTS_WAIT_S
        told: Job | None = None
        current, etag = self._look(job_id, None, None, 0.0)
        while True:
            if on_event is not None:
                for event in self._events(job_id, last_event):
                    last_event = event.id
                    on_event(event)
            if on_change is not None and current is not told:
                on_change(current)
                told = current
            if current.finished:
                return current
            left_s = longest_s if deadline is None else deadline - time.monotonic()
            if left_s <= 0:
                raise WaitTimeout(
                    f"{job_id} was not finished after {timeout_s:g} s ({current.status}); "
                    f"it goes on.",
                    current,
                )
            current, etag = self._look_patiently(current, etag, min(longest_s, left_s))

    def _look(
        self, job_id: str, known: Job | None, etag: str | None, wait_s: float
    ) -> tuple[Job, str | None]:
        """Return the job and its ETag, at once or when it differs from `etag`, that of `known`."""
        headers = {"Prefer": f"wait={max(1, round(wait_s))}"} if wait_s > 0 else {}
        if etag is not None:
            headers["If-None-Match"] = etag
        answer = self._transport.get(
            path_of("jobs", job_id), headers=headers, timeout_s=wait_s + self._transport.timeout_s
        )
        if answer.status_code == httpx.codes.NOT_MODIFIED and known is not None:
            return known, etag
        return self._read(answer.json()), answer.headers.get("ETag")

    def _look_patiently(self, job: Job, etag: str | None, wait_s: float) -> tuple[Job, str | None]:
        began = time.monotonic()
        while True:
            try:
                found = self._look(job.id, job, etag, wait_s)
            except TransportError:
                # the job outlives a restart of the service, and so does waiting for it
                if time.monotonic() - began > _OUTAGE_S + wait_s:
                    raise
                self._transport.pause(3)
            else:
                if time.monotonic() - began < _LEAST_PAUSE_S:
                    time.sleep(_LEAST_PAUSE_S)  # a job that changes quickly is not hammered
                return found
