"""Writes that must not be lost to a database that is locked or away for a while."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

from sqlalchemy.exc import DBAPIError, TimeoutError
from sqlalchemy.orm import Session

from app.db import Database

log = logging.getLogger(__name__)

Written = TypeVar("Written")

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 2.0


class GaveUp(Exception):
    """The database stayed away until the worker had to stop; the sweeper finishes later."""


def persist(
    database: Database, write: Callable[[Session], Written], give_up: threading.Event, job_id: str
) -> Written:
    """Run `write` in a transaction until one commits; the fence makes repeating it safe.

    Raises:
        LeaseLost: from `write`: meanwhile the job went to another worker, or its first try did
            commit although we never heard so.
        GaveUp: `give_up` was set while the database was away.
    """
    wait_s = _FIRST_WAIT_S
    while True:
        try:
            with database.write() as session:
                return write(session)
        except (DBAPIError, TimeoutError) as error:
            log.warning("database away, trying again: %s", error, extra={"job_id": job_id})
        if give_up.wait(wait_s):
            raise GaveUp
        wait_s = min(wait_s * 2, _LONGEST_WAIT_S)
