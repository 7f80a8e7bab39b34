"""Datasets: upload, list, look, download, remove."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import TypeAdapter
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.datasets import repository, service
from app.datasets.schemas import DatasetFromUpload, DatasetView
from app.datasets.tables import Dataset
from app.downloads import CONTENT, content_answer
from app.idempotency.answers import IdempotencyKey, answer_once
from app.incoming import is_json, parse_json
from app.multipart import receive_upload
from app.problems import GUARDED, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services
from app.storage import content_key

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_JSON_BODY = TypeAdapter(DatasetFromUpload)
_ONE = GUARDED | {404: ["not_found"], 422: ["invalid_request"]}
_CREATE = GUARDED | {
    400: ["malformed_multipart", "malformed_json", "bad_request", "json_too_deep"],
    408: ["upload_stalled"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
    422: [
        "invalid_request", "sha256_mismatch", "upload_not_found", "upload_incomplete",
        "invalid_dataset", "invalid_safetensors",
        "corrupt_archive", "not_canonical", "corrupt_entry", "too_many_entries",
        "object_arrays_not_allowed",
        "unsupported_dtype", "dataset_too_large", "duplicate_array", "unknown_array",
        "empty_dataset", "shape_mismatch", "label_mismatch",
    ],
    409: ["upload_incomplete", "project_full", "idempotency_conflict"],
    423: ["upload_locked"],
    507: ["storage_full"],
}  # fmt: skip
_CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file", "name"],
                    "additionalProperties": False,
                    "properties": {
                        "file": {"type": "string", "format": "binary"},
                        "name": {"type": "string", "minLength": 1, "maxLength": 200},
                        "labels": {"type": "string", "description": "JSON object of strings."},
                        "sha256": {"type": "string", "description": "Of the file, in hex."},
                    },
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/DatasetFromUpload"}},
        },
    }
}


@router.post(
    "",
    status_code=201,
    response_model=DatasetView,
    responses=document(_CREATE),
    openapi_extra=_CREATE_BODY,
)
async def create_dataset(
    request: Request, principal: Writer, key: IdempotencyKey = None
) -> Response:
    """Upload an .npz or .safetensors file, or make a dataset of an upload (JSON)."""
    state = services(request)
    limits = state.settings.limits
    owner = (state.database, state.store, principal.project_id)
    declared_bytes = limits.dataset_declared_bytes

    def show(_session: Session, dataset: Dataset) -> Response:
        headers = {"Location": f"/v1/datasets/{dataset.id}"}
        view = DatasetView.model_validate(dataset)
        return json_answer(request, view, status=201, headers=headers)

    async def answer(question: Any, make: Callable[[], Dataset]) -> Response:
        asked = [request.url.path, question]
        return await run_in_threadpool(
            answer_once, state.database, principal.project_id, key, asked, make, show
        )

    if is_json(request):
        body = parse_json(await request.body(), _JSON_BODY)
        make = partial(service.add_part, *owner, body, declared_bytes)
        return await answer(body.model_dump(mode="json"), make)
    async with receive_upload(
        request, state.store, allowed=service.FIELDS, limit_bytes=limits.upload_bytes
    ) as upload:
        make = partial(service.add_upload, *owner, upload, declared_bytes)
        return await answer({**upload.fields, "sha256": upload.sha256}, make)


@router.get(
    "",
    response_model=Page[DatasetView],
    responses=document(GUARDED | {422: ["invalid_request"]}) | NOT_MODIFIED,
)
def list_datasets(
    request: Request, principal: Reader, query: Annotated[PageQuery, Query()]
) -> Response:
    """List the project's datasets, newest first."""
    with services(request).database.read() as session:
        datasets = repository.list_datasets(
            session, principal.project_id, query.limit + 1, query.after
        )
    views = [DatasetView.model_validate(dataset) for dataset in datasets]
    return json_answer(request, take_page(views, query.limit))


@router.get("/{dataset_id}", response_model=DatasetView, responses=document(_ONE) | NOT_MODIFIED)
def get_dataset(request: Request, principal: Reader, dataset_id: str) -> Response:
    """Look at one dataset."""
    with services(request).database.read() as session:
        dataset = repository.get_dataset(session, principal.project_id, dataset_id)
    return json_answer(request, DatasetView.model_validate(dataset))


@router.get(
    "/{dataset_id}/content",
    response_class=Response,
    responses=document(_ONE | {416: ["range_not_satisfiable"]}) | CONTENT,
)
def download_dataset(request: Request, principal: Reader, dataset_id: str) -> Response:
    """Download the file as it was uploaded."""
    state = services(request)
    with state.database.read() as session:
        dataset = repository.get_dataset(session, principal.project_id, dataset_id)
    suffix = f".{dataset.format}"
    name = dataset.name if dataset.name.endswith(suffix) else dataset.name + suffix
    return content_answer(
        request,
        state.store,
        content_key(dataset.sha256),
        size_bytes=dataset.size_bytes,
        sha256=dataset.sha256,
        filename=name,
    )


@router.delete("/{dataset_id}", status_code=204, responses=document(_ONE | {409: ["in_use"]}))
def delete_dataset(request: Request, principal: Writer, dataset_id: str) -> Response:
    """Remove a dataset that no unfinished job needs."""
    state = services(request)
    service.remove_dataset(state.database, state.store, principal.project_id, dataset_id)
    return Response(status_code=204)
