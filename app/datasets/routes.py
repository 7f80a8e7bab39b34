"""Datasets: upload, list, look, download, remove."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.datasets import repository, service
from app.datasets.schemas import DatasetView
from app.downloads import CONTENT, content_answer
from app.multipart import receive_upload
from app.problems import GUARDED, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services
from app.storage import content_key

router = APIRouter(prefix="/v1/datasets", tags=["datasets"])

_ONE = GUARDED | {404: ["not_found"], 422: ["invalid_request"]}
_CREATE = GUARDED | {
    400: ["malformed_multipart", "bad_request", "json_too_deep"],
    408: ["upload_stalled"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
    422: [
        "invalid_request", "sha256_mismatch", "invalid_dataset", "invalid_safetensors",
        "corrupt_archive", "corrupt_entry", "too_many_entries", "object_arrays_not_allowed",
        "unsupported_dtype", "dataset_too_large", "duplicate_array", "unknown_array",
        "empty_dataset", "shape_mismatch", "label_mismatch",
    ],
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
async def create_dataset(request: Request, principal: Writer) -> Response:
    """Upload an .npz or .safetensors file."""
    state = services(request)
    limits = state.settings.limits
    async with receive_upload(
        request, state.store, allowed=service.FIELDS, limit_bytes=limits.upload_bytes
    ) as upload:
        dataset = await run_in_threadpool(
            service.add_upload,
            state.database,
            state.store,
            principal.project_id,
            upload,
            limits.dataset_declared_bytes,
        )
    headers = {"Location": f"/v1/datasets/{dataset.id}"}
    return json_answer(request, DatasetView.model_validate(dataset), status=201, headers=headers)


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
