"""The life of a job's process: forked from the zygote, locked down, runs the engine, reports.

It has no database, broker, storage or secret; it has a folder, a pipe for what it reports, and a
pipe for whatever else is printed.
"""

from __future__ import annotations

import fcntl
import gc
import json
import os
import signal
import socket
import sys
import tempfile
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch

import compress.pipeline
from compress.heap import keep_freed_memory
from compress.measure.memory import ForkedProcess, MemoryProbe
from compress.result import Inputs, Result
from compress.spec import TensorSpec
from workers.failures import Failure, describe
from workers.order import Order, load_order
from workers.sandbox import Confinement, die_with_parent, lock_down

EVENTS_FD = 3
_CURVE_ROWS = 1000


class EventPipe:
    """The engine's sink: one JSON object a line."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def stage(self, stage: str, message: str) -> None:
        """A new stage began."""
        self.send(kind="stage", stage=stage, message=message)

    def progress(self, fraction: float, message: str) -> None:
        """`fraction` of the whole job is done, from 0 to 1."""
        self.send(kind="progress", fraction=fraction, message=message)

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        """Something worth keeping: `type` is `metrics` or `log`."""
        self.send(kind="event", type=type, message=message, data=data, level=level)

    def send(self, **content: Any) -> None:
        """Write one line, whole."""
        left = memoryview(json.dumps(content, default=_plain).encode() + b"\n")
        while left:
            left = left[os.write(self._descriptor, left) :]


def become_child(
    parent_pid: int, folder: Path, events: int, output: int, release: list[socket.socket]
) -> NoReturn:
    """Turn this freshly forked process into a job's process, run the job, and exit.

    Args:
        parent_pid: The zygote's pid.
        folder: The job's folder.
        events: Descriptor that gets the reports.
        output: Descriptor that gets stdout and stderr.
        release: The zygote's own sockets, closed here.
    """
    status = 1
    try:
        os.setsid()
        die_with_parent(parent_pid)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for held in release:
            held.detach()  # or its finalizer would close a number that is another file by then
        _arrange_descriptors(events, output)
        _clean_environment(folder)
        status = _run(folder, EventPipe(EVENTS_FD))
    except BaseException:  # not even SystemExit may lead back into the zygote's loop
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _run(folder: Path, pipe: EventPipe) -> int:
    try:
        order = load_order(folder)
        os.nice(order.nice)
        torch.set_num_threads(order.spec.threads)
        measuring = _fork_measuring(order, folder) if order.kind == "job" else None
        keep_freed_memory()  # not before: what is measured is a process like any other
        kept = [Path(order.checkpoints)] if order.checkpoints is not None else []
        _confine(order, read=["inputs"], write=["out", "scratch"], folder=folder, kept=kept)
        pipe.send(kind="result", result=_engine(order, folder, pipe, measuring))
    except Exception as error:
        failure: Failure = describe(error)
        traceback.print_exc()
        del error
        gc.collect()  # after running out of memory, make room to say so
        pipe.send(kind="error", error=failure.to_dict())
    return 0


def _fork_measuring(order: Order, folder: Path) -> ForkedProcess:
    """Start the process that measures memory, which this one could not once it is locked down."""
    return ForkedProcess(
        confine=lambda: lock_down(Confinement(limits=order.limits, forks=True, mode=order.sandbox)),
        confine_copy=lambda: _confine(
            order, read=["inputs", "out"], write=["scratch"], folder=folder
        ),
    )


def _confine(
    order: Order, *, read: list[str], write: list[str], folder: Path, kept: Sequence[Path] = ()
) -> None:
    lock_down(
        Confinement(
            limits=order.limits,
            readable=tuple(folder / name for name in read),
            writable=(*(folder / name for name in write), *kept),
            cuda=order.spec.device == "cuda" and order.kind == "job",
            mode=order.sandbox,
        )
    )


def _engine(
    order: Order, folder: Path, pipe: EventPipe, measuring: ForkedProcess | None
) -> dict[str, Any]:
    files = {role: folder / "inputs" / name for role, name in order.inputs.items()}
    inputs = Inputs(
        model=files["model"],
        calibration=files.get("calibration"),
        evaluation=files.get("evaluation"),
        model_inputs=tuple(_tensor_spec(declared) for declared in order.model_inputs),
        training=files.get("training"),
        student=files.get("student"),
        checkpoints=Path(order.checkpoints) if order.checkpoints is not None else None,
    )
    if order.kind == "preflight":
        return dict(compress.pipeline.preflight(order.spec, inputs, pipe))
    result: Result = compress.pipeline.run(
        order.spec, inputs, pipe, folder / "out", lambda: MemoryProbe(measuring)
    )
    return _shorten_curve(result.to_dict())


def _shorten_curve(result: dict[str, Any]) -> dict[str, Any]:
    """Of a training of very many epochs keep some, evenly; `manifest.json` has them all."""
    curve = (result.get("training") or {}).get("curve") or []
    if len(curve) <= _CURVE_ROWS:
        return result
    last = len(curve) - 1
    picked = [curve[index * last // (_CURVE_ROWS - 1)] for index in range(_CURVE_ROWS)]
    return {**result, "training": {**result["training"], "curve": picked}}


def _tensor_spec(declared: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(**{**declared, "shape": tuple(declared.get("shape", ()))})


def _arrange_descriptors(events: int, output: int) -> None:
    """Keep stdin (nothing), stdout and stderr (the log), the event pipe; close all others."""
    # first out of the way of the numbers they are going to, or one would overwrite the other
    high_events, high_output = _above(events), _above(output)
    nothing = os.open("/dev/null", os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(high_output, 1)
    os.dup2(high_output, 2)
    os.dup2(high_events, EVENTS_FD)
    os.set_inheritable(EVENTS_FD, False)
    os.closerange(EVENTS_FD + 1, os.sysconf("SC_OPEN_MAX"))


def _above(descriptor: int) -> int:
    return fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, 64)


def _clean_environment(folder: Path) -> None:
    scratch = str(folder / "scratch")
    os.environ.clear()
    os.environ.update(
        HOME=scratch, TMPDIR=scratch, LANG="C.UTF-8", PATH="/usr/bin:/bin", PYTHONHASHSEED="0",
        USER="job",  # or who asks for it reads /etc/passwd, which is out of reach
    )  # fmt: skip
    sys.dont_write_bytecode = True
    os.chdir(scratch)
    tempfile.tempdir = None  # found anew, in the scratch folder


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, Path):
        return value.name
    return str(value)
