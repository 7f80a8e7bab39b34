"""Whether a lease that ran out means that its owner is dead, or that everybody was held up."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta

_LOOKS = 3


@dataclass(frozen=True)
class Owned:
    """A running job, as the sweeper saw it; renewing the lease makes another one of it."""

    job_id: str
    fence: int
    owner: str | None
    lease_expires_at: datetime | None


@dataclass
class _Suspect:
    looks: int
    seen_at: datetime


class Expiries:
    """What one sweeper remembers of leases that ran out.

    If we ourselves were held up (a locked database, a machine asleep, a clock set forward), then
    owners were held up too, and must get time to renew. On a machine under load we always are:
    there a lease counts once we have seen it run out in several looks, each with the lock in
    hand that its owner would have needed, and far enough apart for a heartbeat to come between.

    All times are by the database's clock, in which the leases are written.
    """

    def __init__(self, sweep_s: float, heartbeat_s: float) -> None:
        self._longest_gap = timedelta(seconds=max(sweep_s * 2, heartbeat_s))
        self._heartbeat = timedelta(seconds=heartbeat_s)
        self._looked_at: datetime | None = None
        self._undisturbed = False
        self._suspects: dict[Owned, _Suspect] = {}

    def look(self, now: datetime, expired: Collection[Owned]) -> None:
        """Begin a look at all leases; `expired` ran out before `now`."""
        previous, self._looked_at = self._looked_at, now
        self._undisturbed = previous is not None and now - previous < self._longest_gap
        self._suspects = {
            owned: suspect for owned, suspect in self._suspects.items() if owned in expired
        }

    def means_death(self, owned: Owned, now: datetime) -> bool:
        """Return whether the owner is dead. Ask with the lock on its row in hand."""
        assert self._looked_at is not None
        if self._undisturbed and now - self._looked_at < self._heartbeat:
            return True
        suspect = self._suspects.setdefault(owned, _Suspect(0, now))
        if suspect.looks == 0 or now - suspect.seen_at >= self._heartbeat:
            suspect.looks += 1
            suspect.seen_at = now
        return suspect.looks >= _LOOKS
