"""What a job can be on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from compress.spec import Backend, Device, Format, Method

GPU_METHODS: tuple[Method, ...] = ("convert", "distill")
"""What makes files for backend `cuda`: torch computes integers on processors alone."""


def needs_gpu(device: Device, backend: Backend) -> bool:
    """Whether a job cannot do without a GPU."""
    return device == "cuda" or backend == "cuda"


def find_contradiction(
    method: Method, formats: Iterable[Format], device: Device
) -> tuple[Literal["method", "formats", "device"], str] | None:
    """Return the field of a job for backend `cuda` that cannot be so, and why; None if all can."""
    if method not in GPU_METHODS:
        return "method", (
            f"Method '{method}' makes integers, which torch computes on processors alone; for "
            f"backend 'cuda' use {' or '.join(GPU_METHODS)}."
        )
    if set(formats) != {"torchscript"}:
        return "formats", "For backend 'cuda' there is format 'torchscript'; ask for that alone."
    if device == "cpu":
        return "device", "Files for backend 'cuda' are measured on a GPU; leave device at 'auto'."
    return None
