"""A limit on calls that may never return, such as a loop in a model's own code."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TypeVar

from compress.errors import RunTimeout

T = TypeVar("T")


def within(limit_s: float, call: Callable[[], T], what: str) -> T:
    """Return what `call` returns.

    A call that runs longer goes on in a thread that ends with the process: nothing can stop
    TorchScript from outside.

    Raises:
        RunTimeout: It took longer than `limit_s`; `what` names it.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, name="limited", daemon=True)
    thread.start()
    thread.join(limit_s)
    if thread.is_alive():
        raise RunTimeout(
            f"{what} took longer than {limit_s:g} seconds, so it may never end; look for a loop "
            "that waits for a value that does not come, or send smaller inputs."
        )
    if errors:
        raise errors[0]
    return results[0]
