"""What models and datasets share when they come in: fields, digest, and the blob they become."""

from __future__ import annotations

import json
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from app.db import Database
from app.error_handlers import field_errors
from app.errors import FieldError, Unprocessable
from app.fields import Labels, Name
from app.multipart import Upload
from app.storage import BlobStore, StagedBlob
from app.storage_repository import release_content, store_content

Value = TypeVar("Value")
Row = TypeVar("Row")

LabelsField: TypeAdapter[dict[str, str]] = TypeAdapter(Labels)
NameField: TypeAdapter[str] = TypeAdapter(Name)


def check_digest(upload: Upload) -> None:
    """Compare the file with the field `sha256`, if there is one.

    Raises:
        Unprocessable: `sha256_mismatch`.
    """
    expected = upload.fields.get("sha256")
    if expected is not None and expected.strip().lower() != upload.sha256:
        detail = f"The file that arrived has the SHA-256 {upload.sha256}; upload it again."
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


def keep_content(
    database: Database,
    store: BlobStore,
    staged: StagedBlob,
    sha256: str,
    row: Row,
) -> Row:
    """Store the staged bytes and insert the row that refers to them: both or neither."""
    try:
        with database.write() as session:
            store_content(session, store, staged, sha256)
            session.add(row)
            session.flush()
        return row
    except Exception:
        release_content(database, store, sha256)  # the file may lie there without a row
        raise


def _invalid(errors: list[FieldError]) -> Unprocessable:
    where = ", ".join(error.pointer for error in errors[:3])
    return Unprocessable(
        f"The request does not fit: see {where}.", code="invalid_request", errors=errors
    )
