"""The walls around a job's process, layer by layer, and which of them stand on this machine."""

from workers.sandbox.limits import Limits
from workers.sandbox.lock_down import (
    ALWAYS,
    LAYERS,
    Confinement,
    Mode,
    SandboxIncomplete,
    lock_down,
    missing_layers,
)
from workers.sandbox.parents import die_with_parent

__all__ = [
    "ALWAYS",
    "LAYERS",
    "Confinement",
    "Limits",
    "Mode",
    "SandboxIncomplete",
    "die_with_parent",
    "lock_down",
    "missing_layers",
]
