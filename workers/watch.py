"""Watching a job's process: reads what it reports, and ends it when it must end."""

from __future__ import annotations

import logging
import os
import select
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from workers.failures import Failure, memory_exceeded, timed_out
from workers.heartbeat import Heartbeat
from workers.messages import (
    BadMessage,
    Failed,
    Finished,
    Happened,
    Message,
    MessageReader,
    Progressed,
    StageBegan,
)
from workers.sieve import Note
from workers.spawner import Child

log = logging.getLogger(__name__)

_TICK_S = 0.1
_MEMORY_CHECK_S = 0.5
_READ_BYTES = 65536
_OUTPUT_BYTES_KEPT = 16384
_OUTPUT_BYTES_READ = 64 * 2**20

Reason = Literal["result", "error", "crashed", "cancelled", "lost", "stopping"]


@dataclass
class Outcome:
    """How a job's process ended.

    Attributes:
        reason: `result` and `error` are the engine's own words, and `error` also our limits;
            `crashed` is an end without either; in the other cases we ended it.
        output: The last of what it printed, for the log.
    """

    reason: Reason
    result: Mapping[str, Any] | None = None
    failure: Failure | None = None
    status: int | None = None
    output: str = ""


@dataclass(frozen=True)
class Bounds:
    """When to end the process."""

    timeout_s: int
    memory_bytes: int


class Watch:
    """Reads one child's pipes until it has ended."""

    def __init__(
        self,
        child: Child,
        events: int,
        output: int,
        heartbeat: Heartbeat,
        bounds: Bounds,
        stopping: threading.Event,
    ) -> None:
        self._child = child
        self._events = events
        self._output = output
        self._heartbeat = heartbeat
        self._bounds = bounds
        self._stopping = stopping
        self._reader = MessageReader()
        self._printed = bytearray()
        self._printed_bytes = 0
        self._open = {events, output}
        self._outcome: Outcome | None = None
        self._spoken = False
        self.stage: str | None = None

    def until_end(self) -> Outcome:
        """Return how the process ended; it is gone by then, whatever happened."""
        deadline = time.monotonic() + self._bounds.timeout_s
        memory_check_at = 0.0
        try:
            while not self._child.exited.is_set() and self._outcome is None:
                now = time.monotonic()
                self._read(_TICK_S)
                if self._outcome is None:
                    self._outcome = self._must_end(now > deadline)
                if self._outcome is None and now >= memory_check_at:
                    memory_check_at = now + _MEMORY_CHECK_S
                    memory_bytes = _memory_bytes(self._child.pid)
                    self._heartbeat.report_memory(memory_bytes)
                    if memory_bytes > self._bounds.memory_bytes:
                        self._outcome = Outcome("error", failure=memory_exceeded())
        finally:
            # once the engine has spoken, the process gets a moment to end by itself
            if not (self._spoken and self._child.exited.wait(1.0)):
                self._child.kill()
        self._drain()
        outcome = self._outcome or Outcome("crashed")
        outcome.status = self._child.status
        outcome.output = self._printed.decode(errors="replace")
        return outcome

    def _must_end(self, too_late: bool) -> Outcome | None:
        if self._heartbeat.lost.is_set():
            return Outcome("lost")
        if self._heartbeat.cancel_requested.is_set():
            return Outcome("cancelled")
        if self._stopping.is_set():
            return Outcome("stopping")
        if too_late:
            return Outcome("error", failure=timed_out(self._bounds.timeout_s))
        return None

    def _drain(self) -> None:
        """Read what the process left in its pipes, without waiting for anyone else."""
        while self._open and self._read(0.0):
            pass

    def _read(self, timeout_s: float) -> bool:
        """Read what is there; return False if nothing was."""
        poll = select.poll()
        for descriptor in self._open:
            poll.register(descriptor, select.POLLIN)
        if not self._open:
            self._child.exited.wait(timeout_s)
            return False
        ready = poll.poll(timeout_s * 1000)
        for descriptor, _mask in ready:
            chunk = os.read(descriptor, _READ_BYTES)
            if not chunk:
                self._open.discard(descriptor)
            elif descriptor == self._output:
                self._keep_printed(chunk)
            else:
                self._take(chunk)
        return bool(ready)

    def _keep_printed(self, chunk: bytes) -> None:
        self._printed += chunk
        del self._printed[:-_OUTPUT_BYTES_KEPT]
        self._printed_bytes += len(chunk)
        if self._printed_bytes > _OUTPUT_BYTES_READ and self._outcome is None:
            log.warning("the job prints without end", extra={"pid": self._child.pid})
            self._outcome = Outcome("crashed")

    def _take(self, chunk: bytes) -> None:
        try:
            for message in self._reader.feed(chunk):
                if self._outcome is None:
                    self._handle(message)
        except BadMessage as error:
            log.warning("the job's process sent nonsense: %s", error)
            self._outcome = self._outcome or Outcome("crashed")

    def _handle(self, message: Message) -> None:
        match message:
            case StageBegan(stage, text):
                self.stage = stage
                self._heartbeat.report_stage(stage, text)
            case Progressed(fraction, text):
                self._heartbeat.report_progress(fraction, text)
            case Happened(type, text, data, level):
                self._heartbeat.report_event(Note(type, text, data, level))
            case Finished(result):
                self._outcome, self._spoken = Outcome("result", result=result), True
            case Failed(failure):
                self._outcome, self._spoken = Outcome("error", failure=failure), True


def _memory_bytes(pid: int | None) -> int:
    """Return the process's own memory in RAM; mapped input files do not count."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return sum(
        int(line.split()[1]) * 1024
        for line in status.splitlines()
        if line.startswith(("RssAnon:", "RssShmem:"))
    )
