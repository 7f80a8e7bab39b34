"""What is done to the service: kills, stops, a database that is held or cut off."""

from __future__ import annotations

import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from contextlib import suppress

from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import SQLAlchemyError

from app.jobs.tables import Job
from tests.faults.chaos.house import LEASE_S, House
from tests.faults.chaos.ledger import Fault, Ledger
from tests.faults.chaos.processes import Process, below, descendants

_SHARES = {
    "kill child": 8, "kill probe": 2, "kill zygote": 2, "kill worker": 5, "kill broker": 3,
    "wipe broker": 2, "kill api": 4, "kill launcher": 1, "stop worker": 2, "freeze child": 2,
    "freeze zygote": 1, "freeze worker": 2, "freeze broker": 1, "freeze api": 1, "hold database": 1,
}  # fmt: skip
_SIGNALS = {
    "kill": signal.SIGKILL, "wipe": signal.SIGKILL, "stop": signal.SIGTERM,
    "freeze": signal.SIGSTOP,
}  # fmt: skip


class Mischief:
    """Does one thing after another, at random times; call `go_on` often."""

    def __init__(self, house: House, ledger: Ledger, seed: int, pause_s: float) -> None:
        self._house = house
        self._ledger = ledger
        self._random = random.Random(seed)
        self._pause_s = pause_s
        self._next_at = time.monotonic() + pause_s
        self._undo: list[tuple[float, Callable[[], None]]] = []

    def go_on(self) -> None:
        """Do what is due."""
        now = time.monotonic()
        due, self._undo = (
            [each for each in self._undo if each[0] <= now],
            [each for each in self._undo if each[0] > now],
        )
        for _, undo in due:
            undo()
        if now >= self._next_at:
            self._strike()
            self._next_at = time.monotonic() + self._random.expovariate(1 / self._pause_s)

    def make_good(self) -> None:
        """Let go of all that is held or frozen."""
        for _, undo in self._undo:
            undo()
        self._undo = []

    def _strike(self) -> None:
        (kind,) = self._random.choices(list(_SHARES), list(_SHARES.values()))
        role = kind.split()[1]
        processes = descendants()
        targets = [each for each in processes if each.role == role]
        if targets:
            self._strike_one(kind, self._random.choice(targets), processes)
        elif role == "database" and self._house.database.engine.name == "sqlite":
            self._hold_database()
        elif role == "database":
            self._cut_off_database()

    def _strike_one(self, kind: str, target: Process, processes: list[Process]) -> None:
        deed = kind.split()[0]
        victims, at = self._victims(target, processes), time.time()
        if not target.send(_SIGNALS[deed]):
            return
        if deed == "freeze":
            until = time.monotonic() + self._random.uniform(0.3, 2.5 * LEASE_S)
            self._undo.append((until, lambda: _thaw(target)))
        if deed == "wipe":
            time.sleep(0.05)
            shutil.rmtree(self._house.data_dir / "broker" / "appendonlydir", ignore_errors=True)
        # also what it had taken in between
        self._enter(kind, at, victims | self._victims(target, processes))

    def _enter(self, kind: str, at: float, victims: set[str]) -> None:
        with self._ledger.lock:
            self._ledger.faults.append(Fault(kind, at, victims))

    def _victims(self, target: Process, processes: list[Process]) -> set[str]:
        """Return the attempts that hang on a process, as far as one can see."""
        if target.role == "probe":
            return set()  # a job does without it
        hit = list(below(target, processes))
        victims = {each.attempt for each in hit if each.attempt}
        return victims | self._owned({each.pid for each in hit if each.role == "worker"})

    def _owned(self, workers: set[int] | None) -> set[str]:
        with suppress(SQLAlchemyError), self._house.database.read() as session:
            owned = select(Job.id, Job.fence, Job.owner).where(Job.owner.is_not(None))
            return {
                f"{job_id}-{fence}"
                for job_id, fence, owner in session.execute(owned)
                if workers is None or int(str(owner).split("/")[-2]) in workers
            }
        return set()

    def _hold_database(self) -> None:
        """Keep SQLite's only lock for a while, as a process does that is frozen in mid-write."""
        victims, at = self._owned(None), time.time()
        path = str(self._house.database.engine.url.database)
        connection = sqlite3.connect(path, 2, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            connection.close()
            return
        until = time.monotonic() + self._random.uniform(0.5, 2.5 * LEASE_S)
        self._undo.append((until, connection.close))
        self._enter("hold database", at, victims)

    def _cut_off_database(self) -> None:
        """Break all connections to PostgreSQL."""
        victims, at = self._owned(None), time.time()
        admin = create_engine(self._house.database.engine.url, isolation_level="AUTOCOMMIT")
        with admin.connect() as connection:
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            )
        admin.dispose()
        self._enter("cut off database", at, victims)


def _thaw(target: Process) -> None:
    target.send(signal.SIGCONT)
