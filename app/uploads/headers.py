"""The headers of tus 1.0.0, read with caution."""

from __future__ import annotations

import base64
import hashlib
import re
from datetime import datetime
from email.utils import format_datetime

from starlette.requests import Request

from app.errors import BadRequest, PreconditionFailed, UnsupportedMediaType

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,termination,checksum,expiration"
ALGORITHMS = {"sha1": 20, "sha256": 32, "md5": 16}
"""Name to bytes of the digest."""

PIECE = "application/offset+octet-stream"

_NUMBER = re.compile(r"[0-9]{1,18}")
_METADATA_BYTES = 8192


class Checksum:
    """What `Upload-Checksum` says of a piece: feed it the bytes, then ask whether they fit."""

    def __init__(self, algorithm: str, digest: bytes) -> None:
        self._hash = hashlib.new(algorithm, usedforsecurity=False)
        self._wanted = digest

    def feed(self, chunk: bytes) -> None:
        """Take the next bytes."""
        self._hash.update(chunk)

    def fits(self) -> bool:
        """Return whether the bytes are those that were sent."""
        return self._hash.digest() == self._wanted


def check_version(request: Request) -> None:
    """See that the client speaks our tus.

    Raises:
        PreconditionFailed: `unsupported_tus_version`.
    """
    if request.headers.get("tus-resumable") != VERSION:
        raise PreconditionFailed(
            f"Send the header Tus-Resumable: {VERSION}; any client of tus {VERSION} does."
        )


def read_number(request: Request, name: str) -> int:
    """Return a header that is a number of bytes.

    Raises:
        BadRequest: it is missing or no such number.
    """
    text = request.headers.get(name, "")
    if _NUMBER.fullmatch(text) is None:
        raise BadRequest(f"The header {name} must be a number of bytes.", code="bad_tus_header")
    return int(text)


def read_metadata(request: Request) -> dict[str, str]:
    """Return `Upload-Metadata`, decoded.

    Raises:
        BadRequest: it is not as tus says.
    """
    text = request.headers.get("upload-metadata", "").strip()
    if len(text) > _METADATA_BYTES:
        raise _bad_metadata()
    found: dict[str, str] = {}
    for pair in text.split(",") if text else ():
        key, _, value = pair.strip().partition(" ")
        if not key.isascii() or not key.isprintable() or key in found:
            raise _bad_metadata()
        try:
            decoded = base64.b64decode(value.strip(), validate=True).decode()
        except ValueError:
            raise _bad_metadata() from None
        if not key or "\0" in decoded:  # which no database of ours takes
            raise _bad_metadata()
        found[key] = decoded
    return found


def write_metadata(metadata: dict[str, str]) -> str:
    """Return the header that `read_metadata` reads."""
    return ",".join(
        f"{key} {base64.b64encode(value.encode()).decode()}".rstrip()
        for key, value in metadata.items()
    )


def read_checksum(request: Request) -> Checksum | None:
    """Return what the piece must hash to, if the client says so.

    Raises:
        BadRequest: `unsupported_checksum`.
    """
    text = request.headers.get("upload-checksum")
    if text is None:
        return None
    algorithm, _, digest = text.strip().partition(" ")
    try:
        wanted = base64.b64decode(digest, validate=True)
    except ValueError:
        wanted = b""
    if len(wanted) != ALGORITHMS.get(algorithm, -1):
        raise BadRequest(
            f"Upload-Checksum is the name of an algorithm ({', '.join(ALGORITHMS)}), a space, and "
            "the digest in base64.",
            code="unsupported_checksum",
        )
    return Checksum(algorithm, wanted)


def is_piece(request: Request) -> bool:
    """Return whether the request's body is bytes of the upload."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower() == PIECE


def check_piece(request: Request) -> None:
    """See that the body is bytes of the upload.

    Raises:
        UnsupportedMediaType: it says that it is something else.
    """
    if not is_piece(request):
        raise UnsupportedMediaType(f"Send the bytes with the header Content-Type: {PIECE}.")


def as_http_date(moment: datetime) -> str:
    """Return e.g. `Sun, 06 Nov 1994 08:49:37 GMT`."""
    return format_datetime(moment, usegmt=True)


def _bad_metadata() -> BadRequest:
    return BadRequest(
        "Upload-Metadata is a list of pairs with commas between: a key, a space, and its value in "
        f"base64; all UTF-8 and no longer than {_METADATA_BYTES} bytes.",
        code="bad_tus_header",
    )
