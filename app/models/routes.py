"""Models: upload, list, look, download, remove."""

from __future__ import annotations

import json
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.downloads import CONTENT, content_answer
from app.errors import BadRequest
from app.models import repository, service
from app.models.schemas import ModelFromArtifact, ModelView
from app.multipart import receive_upload
from app.problems import GUARDED, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services
from app.storage import content_key

router = APIRouter(prefix="/v1/models", tags=["models"])

_ONE = GUARDED | {404: ["not_found"], 422: ["invalid_request"]}
_CREATE = GUARDED | {
    400: ["malformed_multipart", "malformed_json", "bad_request", "json_too_deep"],
    408: ["upload_stalled"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
    422: [
        "invalid_request", "sha256_mismatch", "artifact_not_found", "not_a_zip", "empty_archive",
        "not_torchscript", "corrupt_archive", "corrupt_entry", "too_many_entries",
        "code_too_large", "bad_code", "corrupt_pickle", "bad_signature",
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
                        "inputs": {
                            "type": "string",
                            "description": 'JSON: `[{"name", "dtype", "shape"}]`.',
                        },
                        "labels": {"type": "string", "description": "JSON object of strings."},
                        "sha256": {"type": "string", "description": "Of the file, in hex."},
                    },
                }
            },
            "application/json": {"schema": {"$ref": "#/components/schemas/ModelFromArtifact"}},
        },
    }
}


@router.post(
    "",
    status_code=201,
    response_model=ModelView,
    responses=document(_CREATE),
    openapi_extra=_CREATE_BODY,
)
async def create_model(request: Request, principal: Writer) -> Response:
    """Upload a TorchScript file, or make a model of a job's artifact (JSON)."""
    state = services(request)
    if request.headers.get("content-type", "").split(";")[0].strip() == "application/json":
        body = _parse(await request.body())
        model = await run_in_threadpool(
            service.add_artifact, state.database, state.store, principal.project_id, body
        )
    else:
        async with receive_upload(
            request,
            state.store,
            allowed=service.FIELDS,
            limit_bytes=state.settings.limits.upload_bytes,
        ) as upload:
            model = await run_in_threadpool(
                service.add_upload, state.database, state.store, principal.project_id, upload
            )
    headers = {"Location": f"/v1/models/{model.id}"}
    return json_answer(request, ModelView.model_validate(model), status=201, headers=headers)


@router.get(
    "",
    response_model=Page[ModelView],
    responses=document(GUARDED | {422: ["invalid_request"]}) | NOT_MODIFIED,
)
def list_models(
    request: Request, principal: Reader, query: Annotated[PageQuery, Query()]
) -> Response:
    """List the project's models, newest first."""
    with services(request).database.read() as session:
        models = repository.list_models(session, principal.project_id, query.limit + 1, query.after)
    views = [ModelView.model_validate(model) for model in models]
    return json_answer(request, take_page(views, query.limit))


@router.get("/{model_id}", response_model=ModelView, responses=document(_ONE) | NOT_MODIFIED)
def get_model(request: Request, principal: Reader, model_id: str) -> Response:
    """Look at one model."""
    with services(request).database.read() as session:
        model = repository.get_model(session, principal.project_id, model_id)
    return json_answer(request, ModelView.model_validate(model))


@router.get(
    "/{model_id}/content",
    response_class=Response,
    responses=document(_ONE | {416: ["range_not_satisfiable"]}) | CONTENT,
)
def download_model(request: Request, principal: Reader, model_id: str) -> Response:
    """Download the file as it was uploaded."""
    state = services(request)
    with state.database.read() as session:
        model = repository.get_model(session, principal.project_id, model_id)
    name = model.name if model.name.endswith((".pt", ".pth")) else f"{model.name}.pt"
    return content_answer(
        request,
        state.store,
        content_key(model.sha256),
        size_bytes=model.size_bytes,
        sha256=model.sha256,
        filename=name,
    )


@router.delete("/{model_id}", status_code=204, responses=document(_ONE | {409: ["in_use"]}))
def delete_model(request: Request, principal: Writer, model_id: str) -> Response:
    """Remove a model that no unfinished job needs."""
    state = services(request)
    service.remove_model(state.database, state.store, principal.project_id, model_id)
    return Response(status_code=204)


def _parse(text: bytes) -> ModelFromArtifact:
    try:
        body = json.loads(text)
    except ValueError as error:
        raise BadRequest("The body is not well-formed JSON.", code="malformed_json") from error
    try:
        return ModelFromArtifact.model_validate(body)
    except ValidationError as error:
        errors = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(errors, body=body) from error
