"""What models and datasets share when they come in: fields, digest, and the blob they become."""

from __future__ import annotations

import json
from typing import Any, Protocol, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import TypeAdapter, ValidationError

from app.audit.repository import record
from app.db import Database
from app.error_handlers import field_errors
from app.errors import BadRequest, FieldError, Unprocessable
from app.fields import Labels, Name
from app.idempotency.answers import keep_answer
from app.limits.quota import check_room
from app.multipart import Upload
from app.storage import BlobStore
from app.storage_files import StagedBlob
from app.storage_repository import release_content, store_content

Value = TypeVar("Value")


class Stored(Protocol):
    """A row that refers to stored content."""

    id: Any
    project_id: Any
    size_bytes: Any


Row = TypeVar("Row", bound=Stored)

LabelsField: TypeAdapter[dict[str, str]] = TypeAdapter(Labels)
NameField: TypeAdapter[str] = TypeAdapter(Name)


def check_digest(sha256: str, expected: str | None) -> None:
    """Compare the file's SHA-256 with what the client says, if it says so.

    Raises:
        Unprocessable: `sha256_mismatch`.
    """
    if expected is not None and expected.strip().lower() != sha256:
        detail = f"The file that arrived has the SHA-256 {sha256}; upload it again."
        raise Unprocessable(detail, code="sha256_mismatch", errors=[FieldError("/sha256", detail)])


def read_field(
    upload: Upload, name: str, adapter: TypeAdapter[Value], *, is_json: bool, default: Value | None
) -> Value:
    """Return a text field as the adapter's type; `default` None means that it must be there.

    Raises:
        Unprocessable: `invalid_request`.
    """
    text = upload.fields.get(name)
    if text is None:
        if default is None:
            raise _invalid([FieldError(f"/{name}", "This field is required.")])
        return default
    value: Any = text
    if is_json:
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            raise _invalid([FieldError(f"/{name}", "This is not JSON.")]) from None
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", name, *each["loc"])} for each in error.errors()]
        raise _invalid(field_errors(errors, {name: value})) from error


def is_json(request: Request) -> bool:
    """Return whether the body says that it is JSON."""
    kind = request.headers.get("content-type", "").partition(";")[0]
    return kind.strip().lower() == "application/json"


def parse_json(text: bytes, adapter: TypeAdapter[Value]) -> Value:
    """Return a JSON body as the adapter's type.

    Raises:
        BadRequest: `malformed_json`.
        RequestValidationError: it does not fit.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise BadRequest("The body is not well-formed JSON.", code="malformed_json") from error
    try:
        return adapter.validate_python(body)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors, body=body) from error


def keep_content(
    database: Database,
    store: BlobStore,
    staged: StagedBlob,
    sha256: str,
    row: Row,
    action: str,
) -> Row:
    """Store the staged bytes and insert the row that refers to them: both or neither.

    Raises:
        Conflict: `project_full`.
    """
    try:
        with database.write() as session:
            check_room(session, row.project_id, row.size_bytes)
            store_content(session, store, staged, sha256)
            session.add(row)
            session.flush()
            record(session, action, row.project_id, row.id)
            keep_answer(session, row)
        return row
    except Exception:
        release_content(database, store, sha256)  # the file may lie there without a row
        raise


def _invalid(errors: list[FieldError]) -> Unprocessable:
    where = ", ".join(error.pointer for error in errors[:3])
    return Unprocessable(
        f"The request does not fit: see {where}.", code="invalid_request", errors=errors
    )
