"""The thread that speaks to the database while a job runs: lease, progress, events, cancel."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy.exc import DataError, SQLAlchemyError
from sqlalchemy.orm import Session

from app.db import Database
from workers.lease import Claim, LeaseLost, add_event, look, renew
from workers.sieve import Note, Sieve

log = logging.getLogger(__name__)

_TICK_S = 0.5
_LOOK_S = 1.0


class Heartbeat:
    """Renews one job's lease and writes what is reported, at most twice a second.

    It never ends a lease by itself: while the database is away nobody else can take the job, and
    once it is back the fence decides. `lost` is set when the job turned out not to be ours.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        *,
        lease_s: float,
        heartbeat_s: float,
        on_stage: Callable[[str], None] = lambda stage: None,
    ) -> None:
        self.lost = threading.Event()
        self.cancel_requested = threading.Event()
        self._database = database
        self._claim = claim
        self._on_stage = on_stage
        self._lease_s = lease_s
        self._heartbeat_s = min(heartbeat_s, lease_s / 3)
        self._lock = threading.Lock()
        self._values: dict[str, Any] = {}
        self._notes: list[Note] = []
        self._peak_memory_bytes = 0
        self._sieve = Sieve()
        self._stopped = threading.Event()
        self._began = time.monotonic()
        self._renewed = self._looked = self._began
        self._thread = threading.Thread(target=self._run, name=f"heartbeat-{claim.job_id}")
        self._thread.daemon = True

    def start(self) -> None:
        """Begin to renew."""
        self._thread.start()

    def stop(self) -> None:
        """End; the ending of the job writes the rest with `write_rest`."""
        self._stopped.set()
        self._thread.join()

    def report_stage(self, stage: str, message: str) -> None:
        """A new stage began."""
        self._on_stage(stage)
        with self._lock:
            self._values.update(stage=stage, message=message)
        self.report_event(Note("stage", message, {"stage": stage}))

    def report_progress(self, fraction: float, message: str) -> None:
        """The job is so far; the time left is extrapolated once that means something."""
        elapsed_s = time.monotonic() - self._began
        eta_s = elapsed_s * (1 - fraction) / fraction if fraction >= 0.05 else None
        with self._lock:
            self._values.update(progress=fraction, message=message, eta_seconds=eta_s)

    def report_memory(self, memory_bytes: int) -> None:
        """The job's process has so much memory; only the most counts, in steps worth a write."""
        with self._lock:
            if memory_bytes > self._peak_memory_bytes * 1.05:
                self._peak_memory_bytes = memory_bytes
                self._values.update(peak_memory_bytes=memory_bytes)

    def report_event(self, note: Note) -> None:
        """Something happened; whether it is worth keeping, the sieve says."""
        with self._lock:
            verdict = self._sieve.judge(note)
            if verdict == "last":
                note = Note(
                    "log", "too many events: the following ones are dropped", None, "warning"
                )
            if verdict != "drop":
                self._notes.append(note)

    def write_rest(self, session: Session) -> None:
        """Write what is not yet written, in the transaction that ends the attempt.

        Raises:
            LeaseLost: the job is no longer ours.
        """
        with self._lock:
            values, notes = dict(self._values), list(self._notes)
        if values:
            renew(session, self._claim.job_id, self._claim.fence, self._lease_s, **values)
        _add(session, self._claim.job_id, notes)

    def _run(self) -> None:
        while not self._stopped.wait(min(_TICK_S, self._heartbeat_s)):
            try:
                requested = self._beat()
            except LeaseLost:
                self.lost.set()
                return
            except SQLAlchemyError as error:
                log.warning(
                    "database away, trying again: %s", error,
                    extra={"job_id": self._claim.job_id},
                )  # fmt: skip
                continue
            except Exception:  # without a heartbeat the job would be taken from us unnoticed
                log.exception("heartbeat failed", extra={"job_id": self._claim.job_id})
                continue
            if requested:
                self.cancel_requested.set()

    def _beat(self) -> bool:
        now = time.monotonic()
        with self._lock:
            values, self._values = self._values, {}
            notes = list(self._notes)
        job_id, fence = self._claim.job_id, self._claim.fence
        if values or notes or now - self._renewed >= self._heartbeat_s:
            try:
                with self._database.write() as session:
                    requested = renew(session, job_id, fence, self._lease_s, **values)
                    _add(session, job_id, notes)
            except DataError:
                # the database refuses what the engine reported: that must not end the lease
                with self._lock:
                    del self._notes[: len(notes)]
                raise
            except SQLAlchemyError:
                with self._lock:
                    self._values = values | self._values
                raise
            with self._lock:
                del self._notes[: len(notes)]
            self._renewed = self._looked = now
            return requested is not None
        if now - self._looked >= _LOOK_S:
            with self._database.read() as session:
                requested = look(session, job_id, fence)
            self._looked = now
            return requested is not None
        return False


def _add(session: Session, job_id: str, notes: list[Note]) -> None:
    for note in notes:
        add_event(session, job_id, note.type, note.message, note.data, note.level, note.at)
