"""Why a job failed: what happened -> stored code, sentence for the user, and can a retry help."""

from __future__ import annotations

import errno
import signal
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.errors import StorageFull
from compress.errors import CompressError, OutOfMemory
from compress.out_of_memory import lacks_memory
from workers.sandbox import SandboxIncomplete

_OUT_OF_MEMORY = (
    "The job needed more memory than it may use. Lower batch sizes or samples, or ask the "
    "operator for more memory for jobs."
)


@dataclass(frozen=True)
class Failure:
    """The `error` of a job. `code` is stable; `message` says what the user can do."""

    code: str
    message: str
    stage: str | None = None
    retryable: bool = False
    details: Mapping[str, Any] | None = None

    def at(self, stage: str | None) -> Failure:
        """Return a copy that names the stage, unless it names one already."""
        return self if self.stage else replace(self, stage=stage)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON stored in the row."""
        return asdict(self)


def describe(error: BaseException) -> Failure:
    """Return the failure for an exception; what we do not know becomes `internal_error`.

    An unknown exception's text may hold paths, so it goes to the log alone.
    """
    if isinstance(error, CompressError):
        return Failure(error.code, error.message, retryable=error.retryable, details=error.details)
    if isinstance(error, StorageFull) or is_full_disk(error):
        return Failure(
            "storage_full",
            "The server has no room left for this job's files. Delete models, datasets or jobs, "
            "or ask the operator for space, then submit the job again.",
            retryable=True,
        )
    if isinstance(error, SandboxIncomplete):
        return Failure(
            "sandbox_incomplete",
            f"The server requires walls around jobs that its kernel lacks ({error}). Tell the "
            "operator.",
            retryable=True,
        )
    if isinstance(error, OSError) and error.errno == errno.EFBIG:
        return Failure(
            "output_too_large",
            "The job wrote a file far larger than its model allows for. Check the model; if it "
            "is sound, ask the operator.",
        )
    if lacks_memory(error):
        return Failure(OutOfMemory.code, _OUT_OF_MEMORY)
    return Failure(
        "internal_error",
        "The server failed on this job; that is its fault, not yours. Tell the operator the "
        "job's id: the log has the details.",
    )


def is_full_disk(error: BaseException) -> bool:
    """Return True also for what torch makes of a failed write: the reason is its context."""
    while not (isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT)):
        before = error.__cause__ or error.__context__
        if before is None:
            return False
        error = before
    return True


def memory_exceeded() -> Failure:
    """The watchdog ended a job that held too much memory."""
    return Failure(OutOfMemory.code, _OUT_OF_MEMORY)


def timed_out(timeout_s: int) -> Failure:
    """The job ran into its own time limit."""
    return Failure(
        "timeout",
        f"The job did not finish within its timeout_s of {timeout_s}. Submit it again with a "
        f"larger timeout_s, or give it fewer samples.",
    )


def crashed(status: int | None, attempts: int) -> Failure:
    """The job's process ended without a result, each time."""
    return Failure(
        "model_crashed",
        f"The process that ran the model ended {attempts} times without a result "
        f"({ending(status)}). Check that the model runs on these inputs with plain PyTorch. A "
        "process that is refused memory may end so, too: try fewer samples or a smaller batch.",
    )


def worker_lost(attempts: int) -> Failure:
    """Workers died or fell silent with this job, each time."""
    return Failure(
        "worker_lost",
        f"The worker was lost {attempts} times while it ran this job. Submit it again; if it "
        f"happens again, tell the operator.",
        retryable=True,
    )


def ending(status: int | None) -> str:
    """Return a wait status in words: `signal SIGSEGV`, `exit status 1`."""
    if status is None:
        return "lost"
    if status >= 0:
        return f"exit status {status}"
    try:
        return f"signal {signal.Signals(-status).name}"
    except ValueError:
        return f"signal {-status}"
