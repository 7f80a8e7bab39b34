"""The service's errors: one tree; each has an HTTP status and a stable code.

ServiceError
├── BadRequest            400  malformed syntax, bad headers            bad_request
├── Unauthorized          401  no key, unknown or revoked               unauthorized
├── Forbidden             403  the key lacks the scope                  forbidden
├── NotFound              404  also: another project's                  not_found
├── RequestTimeout        408  the client sends nothing any more        upload_stalled
├── Conflict              409  in_use, already_finished, …              conflict
├── Gone                  410  an upload whose time is over             upload_expired
├── PreconditionFailed    412  another version of tus                   unsupported_tus_version
├── TooLarge              413  over a limit                             too_large
├── UnsupportedMediaType  415  a body of another kind                   unsupported_media_type
├── Unprocessable         422  well-formed, but cannot be done          unprocessable
├── RangeNotSatisfiable   416                                           range_not_satisfiable
├── Locked                423  somebody else writes there               upload_locked
├── ChecksumMismatch      460  a piece arrived damaged (tus)            checksum_mismatch
├── RateLimited           429  too often; carries Retry-After           rate_limited
├── StorageFull           507  no room; nothing was stored              storage_full
└── Unavailable           503  try again; carries Retry-After           unavailable
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class FieldError:
    """One fault in a body: an RFC 6901 pointer to the field, and what is wrong with it."""

    pointer: str
    detail: str


class ServiceError(Exception):
    """Base of all errors that a client sees."""

    status = 500
    code = "internal_error"
    title = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        code: str | None = None,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.code = code or type(self).code
        self.errors = tuple(errors)
        self.headers = dict(headers or {})


class BadRequest(ServiceError):
    status = 400
    code = "bad_request"
    title = "Bad request"


class Unauthorized(ServiceError):
    status = 401
    code = "unauthorized"
    title = "Unauthorized"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": 'Bearer realm="tersor"'})


class Forbidden(ServiceError):
    status = 403
    code = "forbidden"
    title = "Forbidden"


class NotFound(ServiceError):
    status = 404
    code = "not_found"
    title = "Not found"


class RequestTimeout(ServiceError):
    status = 408
    code = "upload_stalled"
    title = "Request timeout"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Connection": "close"})  # what else comes is not read


class Conflict(ServiceError):
    status = 409
    code = "conflict"
    title = "Conflict"


class Gone(ServiceError):
    status = 410
    code = "upload_expired"
    title = "Gone"


class PreconditionFailed(ServiceError):
    status = 412
    code = "unsupported_tus_version"
    title = "Precondition failed"


class TooLarge(ServiceError):
    status = 413
    code = "too_large"
    title = "Too large"


class UnsupportedMediaType(ServiceError):
    status = 415
    code = "unsupported_media_type"
    title = "Unsupported media type"


class RangeNotSatisfiable(ServiceError):
    status = 416
    code = "range_not_satisfiable"
    title = "Range not satisfiable"


class Unprocessable(ServiceError):
    status = 422
    code = "unprocessable"
    title = "Unprocessable"


class Locked(ServiceError):
    status = 423
    code = "upload_locked"
    title = "Locked"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"Retry-After": "2"})


class ChecksumMismatch(ServiceError):
    status = 460
    code = "checksum_mismatch"
    title = "Checksum mismatch"


class RateLimited(ServiceError):
    status = 429
    code = "rate_limited"
    title = "Too many requests"

    def __init__(self, detail: str, *, retry_after_s: int, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(retry_after_s)})


class StorageFull(ServiceError):
    status = 507
    code = "storage_full"
    title = "Storage full"


class Unavailable(ServiceError):
    status = 503
    code = "unavailable"
    title = "Unavailable"

    def __init__(self, detail: str, *, retry_after_s: int = 2, code: str | None = None) -> None:
        super().__init__(detail, code=code, headers={"Retry-After": str(retry_after_s)})
