"""Artifacts: look and download."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from app.auth.principal import Reader
from app.downloads import CONTENT, content_answer
from app.jobs import repository, service
from app.jobs.schemas import ArtifactView
from app.problems import GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, json_answer
from app.state import services

router = APIRouter(prefix="/v1/artifacts", tags=["jobs"])

_ONE = GUARDED | INVALID | {404: ["not_found"]}


@router.get("/{artifact_id}", response_model=ArtifactView, responses=document(_ONE) | NOT_MODIFIED)
def get_artifact(request: Request, principal: Reader, artifact_id: str) -> Response:
    """Look at one artifact."""
    with services(request).database.read() as session:
        artifact = repository.get_artifact(session, principal.project_id, artifact_id)
    return json_answer(request, service.show_artifact(artifact))


@router.get(
    "/{artifact_id}/content",
    response_class=Response,
    responses=document(_ONE | {416: ["range_not_satisfiable"]}) | CONTENT,
)
def download_artifact(request: Request, principal: Reader, artifact_id: str) -> Response:
    """Download the file."""
    state = services(request)
    with state.database.read() as session:
        artifact = repository.get_artifact(session, principal.project_id, artifact_id)
    return content_answer(
        request,
        state.store,
        artifact.storage_key,
        size_bytes=artifact.size_bytes,
        sha256=artifact.sha256,
        filename=artifact.name,
    )
