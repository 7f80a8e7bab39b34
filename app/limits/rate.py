"""Requests a second of a project, over all API processes.

They are counted in the broker: a row in the database would cost every request a write to the disk,
and counts of each process alone would allow each of them the whole. While the broker is away, each
process counts for itself.
"""

from __future__ import annotations

import logging
import math
import threading
import time

from limits import RateLimitItemPerSecond
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import RateLimiter as Strategy
from limits.strategies import SlidingWindowCounterRateLimiter
from redis.exceptions import RedisError

from app.errors import RateLimited

log = logging.getLogger(__name__)

_TIMEOUT_S = 0.25
_AWAY_S = 5.0  # so seldom is a broker tried that did not answer


class RateLimiter:
    """Says when a project asks too often. Source: `limits`' sliding window of one second."""

    def __init__(self, broker_url: str) -> None:
        url = broker_url.replace("redis+socket://", "redis+unix://", 1)
        storage = RedisStorage(
            url, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S,
            key_prefix="tersor-rate",
        )  # fmt: skip
        self._shared = SlidingWindowCounterRateLimiter(storage)
        self._own = SlidingWindowCounterRateLimiter(MemoryStorage())
        self._lock = threading.Lock()
        self._away_until_s = 0.0

    def check(self, project_id: str, per_s: int) -> None:
        """Count one request.

        Raises:
            RateLimited: the project has had its requests of this second.
        """
        limiter = self._pick()
        try:
            self._hit(limiter, project_id, per_s)
        except (RedisError, OSError) as error:
            log.warning("requests are counted in each process alone: %s", error)
            with self._lock:
                self._away_until_s = time.monotonic() + _AWAY_S
            self._hit(self._own, project_id, per_s)

    def _pick(self) -> Strategy:
        with self._lock:
            return self._own if time.monotonic() < self._away_until_s else self._shared

    def _hit(self, limiter: Strategy, project_id: str, per_s: int) -> None:
        item = RateLimitItemPerSecond(per_s)
        if limiter.hit(item, project_id):
            return
        free_at_s = limiter.get_window_stats(item, project_id).reset_time
        raise RateLimited(
            f"The project may ask {per_s} times a second. Wait a moment, then try again.",
            retry_after_s=max(1, math.ceil(free_at_s - time.time())),
        )
