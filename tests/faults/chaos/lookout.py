"""Somebody who asks all the while whether the service is ready."""

from __future__ import annotations

import threading
import time

from tests.faults.chaos.house import House
from tests.faults.chaos.ledger import Ledger


class Lookout(threading.Thread):
    """Notes the longest time that the service was not ready."""

    def __init__(self, house: House, ledger: Ledger, enough: threading.Event) -> None:
        super().__init__(name="lookout", daemon=True)
        self._house = house
        self._ledger = ledger
        self._enough = enough

    def run(self) -> None:
        """Look twice a second."""
        down_since: float | None = None
        while not self._enough.wait(0.5):
            now = time.monotonic()
            if not self._house.is_ready():
                down_since = down_since or now
            elif down_since is not None:
                self._ledger.count("times that the service was not ready")
                self._ledger.lasted("service not ready", now - down_since)
                down_since = None
