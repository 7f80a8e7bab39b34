"""Who is writing which upload in this process, so that a client that came back can take over."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio

from app.errors import Locked

_PATIENCE_S = 5.0


class _Writer:
    def __init__(self) -> None:
        self.scope = anyio.CancelScope()
        self.has_ended = anyio.Event()


class Writers:
    """One writer for each upload; the newest wins.

    A client whose connection broke comes back before the server has noticed: without this, the
    old request would hold the upload until it stalls.
    """

    def __init__(self) -> None:
        self._writing: dict[str, _Writer] = {}

    async def end(self, upload_id: str) -> None:
        """End whoever writes to the upload; return once what had arrived is saved.

        Raises:
            Locked: it does not end in time.
        """
        with anyio.move_on_after(_PATIENCE_S):
            while (writer := self._writing.get(upload_id)) is not None:
                writer.scope.cancel()
                await writer.has_ended.wait()
            return
        raise Locked("Another request still writes to this upload. Try again in a moment.")

    @asynccontextmanager
    async def enter(self, upload_id: str) -> AsyncIterator[anyio.CancelScope]:
        """Become the one who writes; leave the context when the scope is cancelled.

        Raises:
            Locked: the one before does not end in time.
        """
        await self.end(upload_id)
        writer = self._writing[upload_id] = _Writer()
        try:
            yield writer.scope
        finally:
            del self._writing[upload_id]
            writer.has_ended.set()
