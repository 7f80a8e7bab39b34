"""Resumable uploads: tus 1.0.0 with creation, termination, checksum and expiration."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.errors import Conflict, TooLarge
from app.head import is_head
from app.idempotency.answers import IdempotencyKey, answer_once
from app.problems import GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import Services, services
from app.uploads import headers as tus
from app.uploads import repository, service
from app.uploads.receiving import receive_piece
from app.uploads.schemas import UploadView, show_upload
from app.uploads.tables import PartialUpload

router = APIRouter(prefix="/v1/uploads", tags=["uploads"])

_ONE = GUARDED | {404: ["not_found"], 410: ["upload_expired"]} | INVALID
_WRITE = _ONE | {
    400: ["bad_request", "bad_tus_header", "unsupported_checksum"],
    408: ["upload_stalled"],
    409: ["offset_mismatch", "upload_taken_over", "too_many_uploads", "project_full"],
    412: ["unsupported_tus_version"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
    423: ["upload_locked"],
    460: ["checksum_mismatch"],
    507: ["storage_full"],
}
_BODY = {"content": {tus.PIECE: {"schema": {"type": "string", "format": "binary"}}}}


def _header(name: str, description: str, pattern: str | None = None) -> dict[str, Any]:
    """Document a header that `app.uploads.headers` reads: tus has its own words for a wrong one."""
    schema = {"type": "string", **({"pattern": pattern} if pattern else {})}
    required = pattern is not None
    return {
        "in": "header", "name": name, "description": description, "schema": schema,
        "required": required,
    }  # fmt: skip


_RESUMABLE = _header("Tus-Resumable", "`1.0.0`", r"^1\.0\.0$")
_CHECKSUM = _header("Upload-Checksum", "`sha256 …`: of the piece, in base64.")
_CREATE: dict[str, Any] = {
    "requestBody": _BODY,
    "parameters": [
        _RESUMABLE,
        _header("Upload-Length", "Bytes of the file.", "^[0-9]{1,18}$"),
        _header("Upload-Metadata", "`key base64, …`; kept as it is."),
        _CHECKSUM,
    ],
}
_APPEND: dict[str, Any] = {
    "requestBody": _BODY,
    "parameters": [
        _RESUMABLE,
        _header("Upload-Offset", "Where the piece belongs.", "^[0-9]{1,18}$"),
        _CHECKSUM,
    ],
}


@router.options("", status_code=204, responses=document(GUARDED))
def show_protocol(request: Request, _principal: Reader) -> Response:
    """Tell which parts of tus this server speaks."""
    return Response(
        status_code=204,
        headers={
            "Tus-Version": tus.VERSION,
            "Tus-Extension": tus.EXTENSIONS,
            "Tus-Checksum-Algorithm": ",".join(tus.ALGORITHMS),
            "Tus-Max-Size": str(services(request).settings.limits.upload_bytes),
        },
    )


@router.post(
    "",
    status_code=201,
    response_model=UploadView,
    responses=document(_WRITE | {409: [*_WRITE[409], "idempotency_conflict"]}),
    openapi_extra=_CREATE,
)
async def create_upload(
    request: Request, principal: Writer, key: IdempotencyKey = None
) -> Response:
    """Begin an upload; its first piece may come along."""
    tus.check_version(request)
    state = services(request)
    limit_bytes = state.settings.limits.upload_bytes
    size_bytes = tus.read_number(request, "Upload-Length")
    if size_bytes > limit_bytes:
        raise TooLarge(f"The file is larger than this server takes ({limit_bytes} bytes).")
    wanted = tus.read_checksum(request)
    metadata = tus.read_metadata(request)
    made: list[PartialUpload] = []

    def make() -> PartialUpload:
        made.append(
            service.create_upload(
                state.database,
                state.store,
                principal.project_id,
                size_bytes,
                metadata,
                state.settings.limits,
            )
        )
        return made[0]

    answer = await run_in_threadpool(
        answer_once,
        state.database,
        principal.project_id,
        key,
        [request.url.path, size_bytes, metadata],
        make,
        lambda _session, upload: _show_new(request, upload),
    )
    if made and tus.is_piece(request):  # to a repeated request the upload's first state is told
        upload = made[0]
        upload.offset_bytes, upload.expires_at = await receive_piece(request, state, upload, wanted)
        return _show_new(request, upload)
    return answer


@router.get(
    "", response_model=Page[UploadView], responses=document(GUARDED | INVALID) | NOT_MODIFIED
)
def list_uploads(
    request: Request, principal: Reader, query: Annotated[PageQuery, Query()]
) -> Response:
    """List the project's unfinished uploads, newest first."""
    with services(request).database.read() as session:
        uploads = repository.list_uploads(
            session, principal.project_id, query.limit + 1, query.after
        )
    return json_answer(request, take_page([show_upload(each) for each in uploads], query.limit))


@router.get(
    "/{upload_id}", response_model=UploadView, responses=document(_ONE | {423: ["upload_locked"]})
)
async def get_upload(request: Request, principal: Reader, upload_id: str) -> Response:
    """Tell how far an upload has come: HEAD for tus, GET for the same as JSON."""
    state = services(request)
    upload = await run_in_threadpool(_load, state, principal.project_id, upload_id)
    # a tus client asks so after it lost its connection, perhaps before we noticed
    if is_head(request.scope) and "write" in principal.scopes:
        await state.writers.end(upload_id)
        upload = await run_in_threadpool(_load, state, principal.project_id, upload_id)
    headers = {
        "Upload-Length": str(upload.size_bytes),
        "Cache-Control": "no-store",
        **_state_of(upload),
    }
    if upload.upload_metadata:
        headers["Upload-Metadata"] = tus.write_metadata(upload.upload_metadata)
    body = show_upload(upload).model_dump_json()
    return Response(body, headers=headers, media_type="application/json")


@router.patch("/{upload_id}", status_code=204, responses=document(_WRITE), openapi_extra=_APPEND)
async def append_to_upload(request: Request, principal: Writer, upload_id: str) -> Response:
    """Send the next piece."""
    tus.check_version(request)
    tus.check_piece(request)
    wanted = tus.read_checksum(request)
    offset_bytes = tus.read_number(request, "Upload-Offset")
    state = services(request)
    await run_in_threadpool(_load, state, principal.project_id, upload_id)
    await state.writers.end(upload_id)
    upload = await run_in_threadpool(_load, state, principal.project_id, upload_id)
    if offset_bytes != upload.offset_bytes:
        raise Conflict(
            f"The upload goes on at {upload.offset_bytes}, not at {offset_bytes}; ask with HEAD.",
            code="offset_mismatch",
            headers={"Upload-Offset": str(upload.offset_bytes)},
        )
    declared = request.headers.get("content-length", "0")
    if declared.isdecimal() and offset_bytes + int(declared) > upload.size_bytes:
        raise TooLarge(f"The upload was begun with Upload-Length: {upload.size_bytes}.")
    upload.offset_bytes, upload.expires_at = await receive_piece(request, state, upload, wanted)
    return Response(status_code=204, headers=_state_of(upload))


@router.delete(
    "/{upload_id}",
    status_code=204,
    responses=document(GUARDED | {404: ["not_found"], 423: ["upload_locked"]} | INVALID),
)
async def delete_upload(request: Request, principal: Writer, upload_id: str) -> Response:
    """Give an upload up."""
    state = services(request)
    await run_in_threadpool(_load, state, principal.project_id, upload_id, find=True)
    await state.writers.end(upload_id)
    await run_in_threadpool(
        service.remove_upload, state.database, state.store, principal.project_id, upload_id
    )
    return Response(status_code=204)


def _show_new(request: Request, upload: PartialUpload) -> Response:
    return json_answer(
        request,
        show_upload(upload),
        status=201,
        headers={"Location": f"/v1/uploads/{upload.id}", **_state_of(upload)},
    )


def _load(state: Services, project_id: str, upload_id: str, *, find: bool = False) -> PartialUpload:
    look = repository.find_upload if find else repository.get_upload
    with state.database.read() as session:
        return look(session, project_id, upload_id)


def _state_of(upload: PartialUpload) -> dict[str, str]:
    return {
        "Upload-Offset": str(upload.offset_bytes),
        "Upload-Expires": tus.as_http_date(upload.expires_at),
    }
