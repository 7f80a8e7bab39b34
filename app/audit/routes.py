"""The audit log, for admins."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field

from app.audit import repository
from app.auth.principal import Admin
from app.fields import ProjectId
from app.problems import GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services

router = APIRouter(prefix="/v1/audit", tags=["service"])


class AuditQuery(PageQuery):
    """Which changes."""

    project_id: ProjectId | None = None
    key_id: Annotated[str | None, Field(pattern=r"^key_[0-9a-z]{26}$")] = None


class AuditView(BaseModel):
    """One change."""

    model_config = {"from_attributes": True, "use_attribute_docstrings": True}

    id: str
    created_at: datetime
    project_id: str
    key_id: str | None
    """Null: a command on the server itself."""
    action: str
    """What was done, as `model.create`."""
    subject_id: str
    """What it was done to."""
    request_id: str | None
    details: dict[str, Any] | None


@router.get(
    "", response_model=Page[AuditView], responses=document(GUARDED | INVALID) | NOT_MODIFIED
)
def list_audit_events(
    request: Request, _principal: Admin, query: Annotated[AuditQuery, Query()]
) -> Response:
    """List who changed what, newest first, of all projects; needs the scope `admin`."""
    with services(request).database.read() as session:
        events = repository.list_audit_events(
            session, query.limit + 1, query.after,
            project_id=query.project_id, key_id=query.key_id,
        )  # fmt: skip
    views = [AuditView.model_validate(event) for event in events]
    return json_answer(request, take_page(views, query.limit))
