"""What a measuring process is given to do; it imports these by name."""

from __future__ import annotations

import os
import signal
import time


def fills(count: int) -> object:
    block = bytearray(count)
    block[::4096] = b"x" * len(block[::4096])
    del block
    return None


def raises() -> object:
    raise ValueError("no such luck")


def ends_itself() -> object:
    os.kill(os.getpid(), signal.SIGKILL)
    return None


def never_ends() -> object:
    time.sleep(3600)
    return None


def prints() -> object:
    print('{"bytes": 1}', flush=True)  # noqa: T201 - what a model may do, too
    os.write(1, b'{"bytes": 1}\n')
    return None
