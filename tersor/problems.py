"""Problem documents (RFC 9457) turned into exceptions."""

from __future__ import annotations

from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

import httpx

from tersor.errors import ApiError, FieldError, error_class


def read_problem(response: httpx.Response) -> ApiError:
    """Return the exception for an answer that is not a success."""
    status = response.status_code
    try:
        body = response.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        body = {}
    faults = [
        FieldError(str(fault.get("pointer", "")), str(fault.get("detail", "")))
        for fault in body.get("errors") or ()
        if isinstance(fault, dict)
    ]
    reason = response.reason_phrase or "an answer without an explanation"
    return error_class(status)(
        status,
        str(body.get("code") or f"http_{status}"),
        str(body.get("detail") or f"{reason}; is {response.url} a Tersor service?"),
        errors=faults,
        request_id=body.get("request_id") or response.headers.get("X-Request-Id"),
        retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
    )


def _retry_after_s(value: str | None) -> float | None:
    if value is None:
        return None
    if value.strip().isdecimal():
        return float(value)
    try:
        moment = parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - datetime.now(UTC)).total_seconds())
