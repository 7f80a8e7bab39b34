"""Receives a multipart upload: the file goes straight to staging, whatever its size."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from anyio import CancelScope
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from app.errors import BadRequest, FieldError, TooLarge, Unprocessable, UnsupportedMediaType
from app.storage import BlobStore
from app.storage_files import CHUNK_BYTES, StagedBlob

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD_BYTES = 64 * 1024
_OVERHEAD_BYTES = 1024 * 1024


@dataclass
class Upload:
    """What one upload carried. The staged file is removed with the context it came from."""

    staged: StagedBlob
    sha256: str = ""
    fields: dict[str, str] = field(default_factory=dict)


@asynccontextmanager
async def receive_upload(
    request: Request, store: BlobStore, *, allowed: Collection[str], limit_bytes: int
) -> AsyncIterator[Upload]:
    """Yield the file, staged and hashed, and the text fields, in whatever order they came.

    Raises:
        UnsupportedMediaType, BadRequest, TooLarge, Unprocessable: the upload cannot be taken.
        RequestTimeout: it stalls.
        ClientDisconnect: the client hung up.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise UnsupportedMediaType("Send the file as multipart/form-data, in the field `file`.")
    if not options.get(b"boundary"):
        raise _malformed("the Content-Type names no boundary")
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and int(declared) > limit_bytes + _OVERHEAD_BYTES:
        raise _too_large(limit_bytes)
    staged = await run_in_threadpool(store.stage)
    try:
        receiver = _Receiver(Upload(staged), allowed, limit_bytes)
        try:
            parser = MultipartParser(options[b"boundary"], receiver.callbacks())
            waiting: list[bytes] = []
            waiting_bytes = 0
            async for chunk in request.stream():
                waiting.append(chunk)
                waiting_bytes += len(chunk)
                # parsing, hashing and writing happen in a thread, a good bite at a time
                if waiting_bytes >= CHUNK_BYTES:
                    await run_in_threadpool(_feed, parser, waiting)
                    waiting, waiting_bytes = [], 0
            await run_in_threadpool(_feed, parser, waiting)
        except FormParserError as error:
            raise _malformed("it breaks off or breaks the rules of RFC 7578") from error
        yield await run_in_threadpool(receiver.finish)
    finally:
        with CancelScope(shield=True):  # removing a large file takes its time: not on the loop
            await run_in_threadpool(staged.__exit__, None, None, None)


def _feed(parser: MultipartParser, chunks: list[bytes]) -> None:
    for chunk in chunks:
        parser.write(chunk)


class _Receiver:
    """Callbacks of the push parser."""

    def __init__(self, upload: Upload, allowed: Collection[str], limit_bytes: int) -> None:
        self.upload = upload
        self._allowed = allowed
        self._limit_bytes = limit_bytes
        self._headers: dict[bytes, bytes] = {}
        self._header_name = b""
        self._header_value = b""
        self._field = ""
        self._text = bytearray()
        self._has_file = False
        self._ended = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    def finish(self) -> Upload:
        if not self._ended:
            raise _malformed("it breaks off before the closing boundary")
        if not self._has_file:
            raise _refuse("file", "This field is required.")
        self.upload.sha256 = self.upload.staged.finish()
        return self.upload

    def _on_part_begin(self) -> None:
        self._headers = {}
        self._text = bytearray()

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._headers[self._header_name.lower()] = self._header_value
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition"))
        name = options.get(b"name")
        if kind != b"form-data" or name is None:
            raise _malformed("a part has no name")
        self._field = name.decode("utf-8", "replace")
        if self._field == "file":
            if self._has_file:
                raise _refuse("file", "Give one file.")
            self._has_file = True
        elif self._field not in self._allowed:
            raise _refuse(self._field, "There is no such field.")
        elif self._field in self.upload.fields:
            raise _refuse(self._field, "This field is there twice.")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field == "file":
            if self.upload.staged.size_bytes + end - start > self._limit_bytes:
                raise _too_large(self._limit_bytes)
            self.upload.staged.write(memoryview(data)[start:end])
            return
        self._text += data[start:end]
        if len(self._text) > FIELD_BYTES:
            raise _refuse(self._field, f"This field is longer than {FIELD_BYTES} bytes.")

    def _on_part_end(self) -> None:
        if self._field == "file":
            return
        try:
            self.upload.fields[self._field] = self._text.decode()
        except UnicodeDecodeError:
            raise _refuse(self._field, "This field is not UTF-8.") from None

    def _on_end(self) -> None:
        self._ended = True


def _malformed(why: str) -> BadRequest:
    return BadRequest(f"The multipart body cannot be read: {why}.", code="malformed_multipart")


def _too_large(limit_bytes: int) -> TooLarge:
    return TooLarge(f"The file is larger than this server takes ({limit_bytes} bytes).")


def _refuse(name: str, detail: str) -> Unprocessable:
    pointer = "/" + name.replace("~", "~0").replace("/", "~1")
    return Unprocessable(
        f"The request does not fit: see {pointer}.",
        code="invalid_request",
        errors=[FieldError(pointer, detail)],
    )
