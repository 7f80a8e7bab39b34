"""Streams stored bytes: ranges (RFC 9110), entity tags, digests (RFC 9530), safe file names."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from itertools import chain
from typing import Any
from urllib.parse import quote

from fastapi import Request, Response
from fastapi.responses import StreamingResponse

from app.errors import RangeNotSatisfiable
from app.head import is_head
from app.responses import matches
from app.storage import BlobStore

_RANGE = re.compile(r"bytes\s*=\s*(\d{0,19})\s*-\s*(\d{0,19})\s*")

CONTENT: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The bytes; `ETag` is the SHA-256, `Repr-Digest` too (RFC 9530).",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    206: {
        "description": "The range asked for.",
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    },
    304: {"description": "Not modified: `If-None-Match` names the current ETag."},
}


def content_answer(
    request: Request, store: BlobStore, key: str, *, size_bytes: int, sha256: str, filename: str
) -> Response:
    """Return the bytes of `key`, or the range that the request asks for; for HEAD, no bytes.

    Raises:
        RangeNotSatisfiable: outside the file, or several ranges at once.
    """
    etag = f'"{sha256}"'
    headers = {
        "ETag": etag,
        "Accept-Ranges": "bytes",
        "Cache-Control": "private, no-cache",
        "Repr-Digest": f"sha-256=:{base64.b64encode(bytes.fromhex(sha256)).decode()}:",
        "Content-Disposition": content_disposition(filename),
        "X-Content-Type-Options": "nosniff",
    }
    if matches(request, etag):
        return Response(status_code=304, headers=headers)
    if is_head(request.scope):  # for which ranges mean nothing
        _opened(store.read(key, 0, min(size_bytes, 1)))
        headers["Content-Length"] = str(size_bytes)
        return Response(headers=headers, media_type="application/octet-stream")
    wanted = request.headers.get("range")
    if_range = request.headers.get("if-range")
    if wanted is None or (if_range is not None and if_range.strip() != etag):
        span = None
    else:
        span = parse_range(wanted, size_bytes)
    start, length = span or (0, size_bytes)
    headers["Content-Length"] = str(length)
    if span is not None:
        headers["Content-Range"] = f"bytes {start}-{start + length - 1}/{size_bytes}"
    return StreamingResponse(
        _opened(store.read(key, start, length)),
        206 if span is not None else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


def parse_range(header: str, size_bytes: int) -> tuple[int, int] | None:
    """Return `(start, length)`, or None for a header that RFC 9110 says to ignore.

    Raises:
        RangeNotSatisfiable: outside the file, or several ranges at once.
    """
    if not header.strip().lower().startswith("bytes"):
        return None
    if "," in header:
        raise _unsatisfiable("Ask for one range at a time.", size_bytes)
    found = _RANGE.fullmatch(header.strip().lower())
    if found is None or found[1] == found[2] == "":
        return None
    if found[1] == "":
        length = min(int(found[2]), size_bytes)
        start = size_bytes - length
    else:
        start = int(found[1])
        end = int(found[2]) if found[2] else size_bytes - 1
        if found[2] and end < start:
            return None
        length = min(end, size_bytes - 1) - start + 1
    if length <= 0 or start >= size_bytes:
        raise _unsatisfiable(f"The file has {size_bytes} bytes.", size_bytes)
    return start, length


def content_disposition(filename: str) -> str:
    """Return an attachment header; the plain name is ASCII, the full one percent-encoded."""
    plain = re.sub(r"[^A-Za-z0-9._-]+", "_", filename).strip("._") or "file"
    header = f'attachment; filename="{plain}"'
    if plain != filename:
        header += f"; filename*=UTF-8''{quote(filename, safe='')}"
    return header


def _opened(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Read the first chunk now: a missing file must show before the headers are out."""
    first = next(chunks, b"")
    return chain((first,), chunks)


def _unsatisfiable(detail: str, size_bytes: int) -> RangeNotSatisfiable:
    return RangeNotSatisfiable(detail, headers={"Content-Range": f"bytes */{size_bytes}"})
