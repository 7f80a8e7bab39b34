"""RFC 9457 problem documents: how they look on the wire and in the OpenAPI document."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel
from starlette.responses import Response

from app.errors import FieldError, ServiceError
from app.logs import request_id_var

MEDIA_TYPE = "application/problem+json"

# what many routes may answer, for `document`
BODY = {
    400: ["malformed_json", "bad_request", "json_too_deep"],
    408: ["upload_stalled"],
    413: ["too_large"],
}
GUARDED = {
    401: ["unauthorized"],
    403: ["forbidden"],
    429: ["rate_limited"],
    503: ["database_busy", "database_full"],
}
WAITING = {  # beside GUARDED: what holds its answer back
    429: [*GUARDED[429], "too_many_waiting"],
    503: [*GUARDED[503], "too_many_waiting"],
}
INVALID = {422: ["invalid_request"]}


class FieldFault(BaseModel):
    """One fault in a request."""

    pointer: str
    """RFC 6901 pointer into the body, or `/query/NAME` and `/header/NAME`."""
    detail: str


class Problem(BaseModel):
    """What went wrong (RFC 9457); branch on `code`."""

    model_config = {"use_attribute_docstrings": True}

    type: str
    """`urn:tersor:problem:` and the code."""
    title: str
    status: int
    detail: str
    """What to do about it."""
    code: str
    """Stable, snake_case."""
    errors: list[FieldFault]
    request_id: str | None


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    errors: Sequence[FieldError] = (),
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document; ASCII-escaped, so no odd text of a client can break it."""
    body = {
        "type": f"urn:tersor:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        "errors": [{"pointer": error.pointer, "detail": error.detail} for error in errors],
        "request_id": request_id_var.get(),
    }
    return Response(
        json.dumps(body).encode("ascii"), status, headers=dict(headers or {}), media_type=MEDIA_TYPE
    )


def error_response(error: ServiceError) -> Response:
    """Return the problem document of a service error."""
    return problem_response(
        error.status,
        error.code,
        error.title,
        error.detail,
        errors=error.errors,
        headers=error.headers,
    )


def document(codes: Mapping[int, Sequence[str]]) -> dict[int | str, dict[str, Any]]:
    """Return OpenAPI `responses` for problems: each status with the codes it may carry."""
    return {
        status: {
            "description": ", ".join(f"`{code}`" for code in names),
            "content": {
                MEDIA_TYPE: {
                    "schema": {
                        "allOf": [
                            {"$ref": "#/components/schemas/Problem"},
                            {"properties": {"code": {"enum": list(names)}}},
                        ]
                    }
                }
            },
        }
        for status, names in codes.items()
    }
