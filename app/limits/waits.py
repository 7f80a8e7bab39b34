"""How many requests may wait at once: each that does holds a connection, and is looked after.

They are counted in each process alone: what they take is the process's. All is on its event loop,
so nothing is locked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import RateLimited, Unavailable

_RETRY_AFTER_S = 5


class Waits:
    """Those who wait for a job to change, or follow its events, by project."""

    def __init__(self, *, per_project: int, in_all: int) -> None:
        self._per_project = per_project
        self._in_all = in_all
        self._waiting: Counter[str] = Counter()

    def enter(self, project_id: str) -> None:
        """Count one more; `leave` must follow.

        Raises:
            RateLimited: `too_many_waiting`, of the project's own.
            Unavailable: `too_many_waiting`, of all projects.
        """
        if self._waiting[project_id] >= self._per_project:
            raise RateLimited(
                f"{self._per_project} requests of the project wait or follow events already. End "
                "some, or ask without waiting.",
                code="too_many_waiting",
                retry_after_s=_RETRY_AFTER_S,
            )
        if self._waiting.total() >= self._in_all:
            raise Unavailable(
                "Too many requests wait or follow events. Ask without waiting, or try again.",
                code="too_many_waiting",
                retry_after_s=_RETRY_AFTER_S,
            )
        self._waiting[project_id] += 1

    def leave(self, project_id: str) -> None:
        """Count one less."""
        self._waiting[project_id] -= 1
        if not self._waiting[project_id]:
            del self._waiting[project_id]

    @contextmanager
    def hold(self, project_id: str) -> Iterator[None]:
        """Be counted within the context.

        Raises:
            RateLimited, Unavailable: as `enter`.
        """
        self.enter(project_id)
        try:
            yield
        finally:
            self.leave(project_id)
