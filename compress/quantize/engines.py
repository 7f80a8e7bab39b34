"""The engines that torch runs int8 kernels with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

from compress.spec import Backend


@contextmanager
def engine_for(backend: Backend) -> Iterator[None]:
    """Pack and run int8 weights as the backend's processors do.

    For `x86` with fbgemm, and oneDNN where that is faster; for `arm` with qnnpack, which computes
    the same on x86. A file is packed afresh when it is loaded, for the engine that is set then.
    """
    before = torch.backends.quantized.engine
    torch.backends.quantized.engine = "qnnpack" if backend == "arm" else "x86"
    try:
        yield
    finally:
        torch.backends.quantized.engine = before


def x86_engine() -> AbstractContextManager[None]:
    """Pack and run weights with torch's `x86` engine."""
    return engine_for("x86")
