"""Models: upload, list, look, download, remove."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import Discriminator, Tag, TypeAdapter
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool

from app.auth.principal import Reader, Writer
from app.downloads import CONTENT, content_answer
from app.idempotency.answers import IdempotencyKey, answer_once
from app.incoming import is_json, parse_json
from app.models import repository, service
from app.models.scan import REFUSALS
from app.models.schemas import ModelFromArtifact, ModelFromUpload, ModelView
from app.models.tables import Model
from app.multipart import receive_upload
from app.problems import GUARDED, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services
from app.storage import content_key

router = APIRouter(prefix="/v1/models", tags=["models"])


def _tell(body: object) -> str:
    return "upload" if isinstance(body, dict) and "upload_id" in body else "artifact"


_JSON_BODY: TypeAdapter[ModelFromArtifact | ModelFromUpload] = TypeAdapter(
    Annotated[
        Annotated[ModelFromArtifact, Tag("artifact")] | Annotated[ModelFromUpload, Tag("upload")],
        Discriminator(_tell),
    ]
)
_ONE = GUARDED | {404: ["not_found"], 422: ["invalid_request"]}
_CREATE = GUARDED | {
    400: ["malformed_multipart", "malformed_json", "bad_request", "json_too_deep"],
    408: ["upload_stalled"],
    413: ["too_large"],
    415: ["unsupported_media_type"],
    422: [
        "invalid_request", "sha256_mismatch", "artifact_not_found", "upload_not_found",
        "upload_incomplete", *REFUSALS,
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
                        "inputs": {
                            "type": "string",
                            "description": 'JSON: `[{"name", "dtype", "shape"}]`.',
                        },
                        "labels": {"type": "string", "description": "JSON object of strings."},
                        "sha256": {"type": "string", "description": "Of the file, in hex."},
                    },
                }
            },
            "application/json": {
                "schema": {
                    "oneOf": [
                        {"$ref": "#/components/schemas/ModelFromArtifact"},
                        {"$ref": "#/components/schemas/ModelFromUpload"},
                    ]
                }
            },
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
async def create_model(request: Request, principal: Writer, key: IdempotencyKey = None) -> Response:
    """Upload a TorchScript file, or make a model of an upload or a job's artifact (JSON)."""
    state = services(request)
    owner = (state.database, state.store, principal.project_id)

    def show(_session: Session, model: Model) -> Response:
        headers = {"Location": f"/v1/models/{model.id}"}
        return json_answer(request, ModelView.model_validate(model), status=201, headers=headers)

    async def answer(question: Any, make: Callable[[], Model]) -> Response:
        asked = [request.url.path, question]
        return await run_in_threadpool(
            answer_once, state.database, principal.project_id, key, asked, make, show
        )

    if is_json(request):
        body = parse_json(await request.body(), _JSON_BODY)
        question = body.model_dump(mode="json")
        if isinstance(body, ModelFromUpload):
            return await answer(question, partial(service.add_part, *owner, body))
        return await answer(question, partial(service.add_artifact, *owner, body))
    async with receive_upload(
        request,
        state.store,
        allowed=service.FIELDS,
        limit_bytes=state.settings.limits.upload_bytes,
    ) as upload:
        question = {**upload.fields, "sha256": upload.sha256}
        return await answer(question, partial(service.add_upload, *owner, upload))


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
