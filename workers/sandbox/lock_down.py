"""Puts up every layer around a process, for good.

Each layer puts up its wall and then asks the kernel whether it stands; a layer that the kernel
lacks is reported, never assumed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from workers.sandbox.landlock import restrict_files
from workers.sandbox.limits import Limits, limit_resources
from workers.sandbox.paths import machine_paths, nvidia_devices, nvidia_paths
from workers.sandbox.privileges import drop_capabilities, forbid_new_privileges
from workers.sandbox.seccomp import filter_calls

Mode = Literal["on", "require", "off"]
"""`on`: what the kernel has; `require`: everything or nothing; `off`: limits alone, to debug."""


ALWAYS = ("rlimits", "no_new_privs")
"""Layers that every kernel has and that `off` leaves standing."""


@dataclass(frozen=True, kw_only=True)
class Confinement:
    """What a process is left with.

    Attributes:
        limits: What it may use.
        readable: Files and folders that it may read, beside Python's libraries.
        writable: Folders that it may also write, beside nothing.
        forks: It may start copies of itself and signal them, and reads what it likes: a server of
            processes, which runs nothing of a model.
        cuda: It may use the machine's NVIDIA GPUs. The driver then hears what the process says,
            and how well it guards the machine is not ours to prove: `require` refuses.
        mode: How much must stand.
    """

    limits: Limits
    readable: tuple[Path, ...] = ()
    writable: tuple[Path, ...] = ()
    forks: bool = False
    cuda: bool = False
    mode: Mode = "on"


class SandboxIncomplete(Exception):
    """The settings require all layers, and this kernel lacks some; names them."""


def lock_down(confinement: Confinement) -> dict[str, bool]:
    """Put up the layers around this process, for good; return which of them stand.

    Call it while the process has one thread: Landlock covers the caller's alone.

    Raises:
        SandboxIncomplete: not all stand, or it uses a GPU, and `mode` is `require`.
    """
    if confinement.mode == "require" and confinement.cuda:
        raise SandboxIncomplete("a GPU's driver has none")
    stands = {
        name: _is_wanted(name, confinement) and put_up(confinement) for name, put_up in LAYERS
    }
    # a server of processes opens files of its copies in /proc, so it has no Landlock of its own
    missing = [name for name in missing_layers(stands) if _is_wanted(name, confinement)]
    if confinement.mode == "require" and missing:
        raise SandboxIncomplete(", ".join(missing))
    return stands


def missing_layers(stands: Mapping[str, bool]) -> list[str]:
    """Return the names of the layers that do not stand."""
    return [name for name, _ in LAYERS if not stands.get(name)]


def _is_wanted(name: str, confinement: Confinement) -> bool:
    if name in ALWAYS:
        return True
    return confinement.mode != "off" and not (name == "landlock" and confinement.forks)


# seccomp goes up last: it refuses the calls that put up the others
LAYERS: tuple[tuple[str, Callable[[Confinement], bool]], ...] = (
    ("rlimits", lambda confinement: limit_resources(confinement.limits)),
    ("no_new_privs", lambda _confinement: forbid_new_privileges()),
    (
        "landlock",
        lambda confinement: restrict_files(
            (
                *machine_paths(),
                *(nvidia_paths() if confinement.cuda else ()),
                *confinement.readable,
            ),
            confinement.writable,
            nvidia_devices() if confinement.cuda else (),
        ),
    ),
    ("capabilities", lambda _confinement: drop_capabilities()),
    ("seccomp", lambda confinement: filter_calls(forks=confinement.forks, cuda=confinement.cuda)),
)
