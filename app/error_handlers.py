"""Turns every exception that a route or the router raises into a problem document."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from sqlalchemy.exc import DBAPIError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from starlette.exceptions import HTTPException

from app.errors import FieldError, ServiceError, Unavailable
from app.problems import error_response, problem_response

_ROUTER = {
    404: ("not_found", "Not found", "There is nothing at this address."),
    405: ("method_not_allowed", "Method not allowed", "This address does not take that method."),
    400: ("bad_request", "Bad request", "The body could not be read."),
}

_PASSING = frozenset(
    {
        "55P03",  # PostgreSQL's lock_not_available: another transaction took its time
        "40P01",  # deadlock_detected: ours was the one given up
        "25P03",  # idle_in_transaction_session_timeout: we were frozen in between
    }
)


def install(app: FastAPI) -> None:
    """Register the handlers."""
    app.add_exception_handler(ServiceError, _on_service_error)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(OperationalError, _on_database_error)
    app.add_exception_handler(InterfaceError, _on_database_error)
    app.add_exception_handler(InternalError, _on_database_error)
    app.add_exception_handler(PoolTimeout, _on_database_error)


def pointer_to(location: Sequence[int | str], body: Any, *, is_missing: bool = False) -> str:
    """Return the RFC 6901 pointer of a pydantic location.

    Pydantic puts names of its own between (the tag of a union, `[key]`), so a step is kept only
    if the body has it, or if it is the last one, a field that is missing.

    >>> pointer_to(["ptq", "config", "mode"], {"method": "ptq", "config": {"mode": 1}})
    '/config/mode'
    """
    steps: list[str] = []
    here = body
    for index, step in enumerate(location):
        last = index == len(location) - 1
        if isinstance(here, dict):
            if step in here:
                here = here[step]
            elif not (last and is_missing):
                continue
        elif isinstance(here, list) and isinstance(step, int) and step < len(here):
            here = here[step]
        else:
            continue
        steps.append(str(step).replace("~", "~0").replace("/", "~1"))
    return "".join(f"/{step}" for step in steps)


def field_errors(errors: Sequence[Any], body: Any) -> list[FieldError]:
    """Return pydantic's errors as ours, each place named once."""
    found: dict[str, str] = {}
    for error in errors:
        place, *rest = error["loc"] or ("body",)
        if place == "body":
            pointer = pointer_to(rest, body, is_missing=error["type"] == "missing")
            if error["type"] in ("union_tag_not_found", "union_tag_invalid"):
                pointer += "/method"
        else:
            pointer = "".join(f"/{step}" for step in (place, *rest))
        found.setdefault(pointer, _say(error))
    return [FieldError(pointer, detail) for pointer, detail in found.items()]


def _say(error: Any) -> str:
    kind = error["type"]
    if kind in ("extra_forbidden", "unexpected_keyword_argument"):
        return "There is no such field."
    if kind in ("missing", "union_tag_not_found"):
        return "This field is required."
    if kind == "union_tag_invalid":
        return f"There is no such method; choose one of {error['ctx']['expected_tags']}."
    if kind == "predicate_failed":
        return "Only printable characters, please."
    message = str(error["msg"]).removeprefix("Value error, ").rstrip(".")
    return f"{message[:1].upper()}{message[1:]}."


async def _on_service_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, ServiceError)
    return error_response(error)


async def _on_validation_error(_request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = error.errors()
    if any(each["type"] == "json_invalid" for each in errors):
        return problem_response(
            400, "malformed_json", "Bad request", "The body is not well-formed JSON."
        )
    faults = field_errors(errors, error.body)
    if isinstance(error.body, bytes):  # left unparsed: `curl -d` alone sends a form's type
        hint = "Send JSON, with the header Content-Type: application/json."
        return problem_response(
            422, "invalid_request", "Unprocessable", hint, errors=[FieldError("", hint)]
        )
    where = ", ".join(fault.pointer or "the body" for fault in faults[:3])
    return problem_response(
        422,
        "invalid_request",
        "Unprocessable",
        f"The request does not fit: see {where}.",
        errors=faults,
    )


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == 405 and (methods := _allowed_methods(request)):
        headers["Allow"] = ", ".join(sorted(methods))
    code, title, detail = _ROUTER.get(
        error.status_code, ("http_error", "HTTP error", str(error.detail))
    )
    return problem_response(error.status_code, code, title, detail, headers=headers)


def _allowed_methods(request: Request) -> set[str]:
    """Return the methods at this path; the router itself names those of its first route only."""
    app: FastAPI = request.app
    methods = {
        method.upper()
        for path, operations in app.openapi()["paths"].items()
        if re.fullmatch(re.sub(r"\{\w+\}", "[^/]+", path), request.scope["path"])
        for method in operations
    }
    return methods | {"HEAD"} if "GET" in methods else methods


async def _on_database_error(_request: Request, error: Exception) -> Response:
    if isinstance(error, OperationalError) and _is_full(error):
        return error_response(
            Unavailable(
                "The database has no room left; nothing was stored. Delete jobs, models or "
                "datasets, or ask the operator for space, then try again.",
                code="database_full",
            )
        )
    if isinstance(error, OperationalError | InternalError) and not _can_pass(error):
        raise error
    return error_response(
        Unavailable("The database is busy or away. Try again in a moment.", code="database_busy")
    )


def _is_full(error: OperationalError) -> bool:
    text = str(error.orig).lower()
    return "disk is full" in text or "no space left" in text  # as SQLite and PostgreSQL say it


def _can_pass(error: DBAPIError) -> bool:
    text = str(error.orig).lower()
    return (
        error.connection_invalidated
        or getattr(error.orig, "sqlstate", None) in _PASSING
        or "locked" in text
        or "busy" in text
        or "connect" in text
        or "terminat" in text
    )
