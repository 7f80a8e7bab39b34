"""Everything the client raises on purpose: one tree, each with a stable `code`.

TersorError
├── ConfigurationError    no usable address, key or file          configuration
├── TransportError        no answer from the service              cannot_connect, connection_lost, …
├── DigestMismatch        bytes arrived that are not the file     digest_mismatch
├── FileChanged           a file changed while it was sent        file_changed
├── JobFailed             the job ended without success           the job's own code
├── WaitTimeout           the job runs on; we stopped waiting     wait_timeout
└── ApiError              the service said no                     the problem's own code
    ├── BadRequest 400  Unauthorized 401  Forbidden 403  NotFound 404  Conflict 409
    ├── TooLarge 413  Unprocessable 422  RateLimited 429
    └── ServerError 5xx ── Unavailable 503
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tersor.jobs import Job


class TersorError(Exception):
    """Base of all errors of the client.

    Attributes:
        code: Stable, snake_case; branch on it.
        message: What went wrong and what to do.
    """

    code = "tersor_error"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or type(self).code

    def __str__(self) -> str:
        return f"{self.code}: {self.message}"


class ConfigurationError(TersorError):
    """The address, the key or a local file cannot be used."""

    code = "configuration"


class TransportError(TersorError):
    """The service did not answer. `sent` tells whether the request may have reached it."""

    code = "cannot_connect"

    def __init__(self, message: str, *, code: str | None = None, sent: bool = False) -> None:
        super().__init__(message, code=code)
        self.sent = sent


class DigestMismatch(TersorError):
    """What was downloaded is not the file whose SHA-256 the service gave."""

    code = "digest_mismatch"


class FileChanged(TersorError):
    """The file changed while it was being sent."""

    code = "file_changed"


class JobFailed(TersorError):
    """The job ended as `failed` or `cancelled`.

    Attributes:
        stage: Where it ended, if it had begun.
        retryable: Whether the same job could succeed if run again.
        job: The finished job.
    """

    code = "job_failed"

    def __init__(
        self, message: str, *, code: str, stage: str | None, retryable: bool, job: Job
    ) -> None:
        super().__init__(message, code=code)
        self.stage = stage
        self.retryable = retryable
        self.job = job


class WaitTimeout(TersorError):
    """The job was not finished in the time given; it goes on. `job` is its last state."""

    code = "wait_timeout"

    def __init__(self, message: str, job: Job) -> None:
        super().__init__(message)
        self.job = job


@dataclass(frozen=True)
class FieldError:
    """One fault of a request: a JSON pointer to the field, and what is wrong with it."""

    pointer: str
    detail: str


class ApiError(TersorError):
    """The service answered with a problem document (RFC 9457).

    Attributes:
        status: HTTP status.
        code: Stable code of the problem.
        detail: What to do about it.
        errors: The fields at fault, if any.
        request_id: Names the request in the service's log.
        retry_after_s: When to try again, if the service said so.
    """

    def __init__(
        self,
        status: int,
        code: str,
        detail: str,
        *,
        errors: Sequence[FieldError] = (),
        request_id: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        faults = "; ".join(
            error.pointer if error.detail == detail else f"{error.pointer}: {error.detail}"
            for error in errors
        )
        super().__init__(f"{detail} ({faults})" if faults else detail, code=code)
        self.status = status
        self.detail = detail
        self.errors = tuple(errors)
        self.request_id = request_id
        self.retry_after_s = retry_after_s


class BadRequest(ApiError):
    """400: the request cannot be read."""


class Unauthorized(ApiError):
    """401: no key, or one that is unknown or revoked."""


class Forbidden(ApiError):
    """403: the key lacks the scope."""


class NotFound(ApiError):
    """404: no such thing in the key's project."""


class Conflict(ApiError):
    """409: it clashes with the state of things: `in_use`, `already_finished`, …"""


class TooLarge(ApiError):
    """413: over a limit of the service."""


class Unprocessable(ApiError):
    """422: well-formed, but it cannot be done; `errors` points to the fields."""


class RateLimited(ApiError):
    """429: too many requests."""


class ServerError(ApiError):
    """5xx: the service, or what stands before it, failed."""


class Unavailable(ServerError):
    """503: try again in a moment."""


_BY_STATUS: dict[int, type[ApiError]] = {
    400: BadRequest,
    401: Unauthorized,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    422: Unprocessable,
    429: RateLimited,
    503: Unavailable,
}


def error_class(status: int) -> type[ApiError]:
    """Return the class of errors for an HTTP status."""
    return _BY_STATUS.get(status, ServerError if status >= 500 else ApiError)
