"""What a job can be on a GPU."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from compress.spec import (
    Backend,
    Config,
    ConvertConfig,
    Device,
    DistillConfig,
    Format,
    Method,
    PtqConfig,
)

_DYNAMIC = "For backend 'cuda', ptq scales activations on each call: set config.mode to 'dynamic'"


def needs_gpu(device: Device, backend: Backend) -> bool:
    """Whether a job cannot do without a GPU."""
    return device == "cuda" or backend == "cuda"


def find_contradiction(
    method: Method, config: Config, formats: Iterable[Format], device: Device
) -> tuple[Literal["method", "config", "formats", "device"], str] | None:
    """Return the field of a job for backend `cuda` that cannot be so, and why; None if all can."""
    if not isinstance(config, ConvertConfig | DistillConfig | PtqConfig):
        return "method", (
            f"Method '{method}' makes integers as processors compute with them; for backend 'cuda' "
            "use convert, distill, or ptq with mode 'dynamic'."
        )
    if isinstance(config, PtqConfig):
        if config.mode != "dynamic":
            return "config", f"{_DYNAMIC}."
        if config.granularity != "per_channel" or config.smoothquant:
            return "config", f"{_DYNAMIC}, granularity to 'per_channel', and leave smoothquant out."
        if not set(config.overrides.values()) <= {"int8", "fp16"}:
            return "config", "For backend 'cuda', overrides of ptq are 'int8' or 'fp16'."
    if set(formats) != {"torchscript"}:
        return "formats", "For backend 'cuda' there is format 'torchscript'; ask for that alone."
    if device == "cpu":
        return "device", "Files for backend 'cuda' are measured on a GPU; leave device at 'auto'."
    return None
