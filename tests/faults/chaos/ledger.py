"""What was asked of the service, what it has answered, and what was done to it."""

from __future__ import annotations

import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Order:
    """One job that a customer wants.

    Attributes:
        number: Its label, by which a job is found whose id never reached the customer.
        errand: What kind of job it is.
        outcomes: Endings that are right: `succeeded`, `cancelled`, `failed:<code>`.
        job_id: Set once the service has accepted it.
        maybe: The connection broke and nobody asked again: it may have been accepted, once.
        ended: The job as it was first seen at its end.
        deleted: The customer has deleted it.
    """

    number: int
    errand: str
    outcomes: set[str]
    job_id: str | None = None
    maybe: bool = False
    ended: dict[str, Any] | None = None
    deleted: bool = False


@dataclass
class Fault:
    """Something that was done to the service; `victims` are attempts that it hit."""

    kind: str
    at: float
    victims: set[str]


@dataclass
class Ledger:
    """Shared by all threads."""

    orders: list[Order] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    longest_s: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def order(self, errand: str, outcomes: set[str]) -> Order:
        """Enter a new order."""
        with self.lock:
            order = Order(len(self.orders), errand, outcomes)
            self.orders.append(order)
            return order

    def complain(self, what: str) -> None:
        """Note what must not be."""
        with self.lock:
            self.violations.append(what)
        say(f"{time.strftime('%H:%M:%S')} violation: {what}")

    def count(self, what: str, number: int = 1) -> None:
        """Add to a figure of the tally."""
        with self.lock:
            self.counts[what] += number

    def lasted(self, what: str, seconds: float) -> None:
        """Keep the longest time."""
        with self.lock:
            self.longest_s[what] = max(seconds, self.longest_s.get(what, 0.0))


def say(line: str) -> None:
    """Print a line at once."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
