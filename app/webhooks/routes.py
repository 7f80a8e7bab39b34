"""The secret that webhooks are signed with, and what became of those that were sent."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from pydantic import BaseModel, Field
from sqlalchemy import select

from app.audit.repository import record
from app.auth.principal import Reader, Writer
from app.problems import BODY, GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, Page, PageQuery, json_answer, take_page
from app.state import services
from app.webhooks.secrets import renew_secret
from app.webhooks.tables import WebhookDelivery

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"])


class SecretView(BaseModel):
    """A new secret; it is shown this once."""

    secret: str
    created_at: datetime


class DeliveryQuery(PageQuery):
    """Which deliveries."""

    job_id: Annotated[str | None, Field(pattern=r"^job_[0-9a-z]{26}$")] = None


class DeliveryView(BaseModel):
    """A message about a job."""

    model_config = {"from_attributes": True, "use_attribute_docstrings": True}

    id: str
    """The same as the header `webhook-id`."""
    job_id: str
    type: str
    url: str
    status: Literal["pending", "delivered", "failed"]
    attempts: int
    response_status: int | None
    """Of the last try."""
    error: str | None
    """Why the last try failed."""
    created_at: datetime
    delivered_at: datetime | None


@router.post(
    "/secret", status_code=201, response_model=SecretView, responses=document(BODY | GUARDED)
)
def renew_webhook_secret(request: Request, principal: Writer) -> Response:
    """Make the project's secret, or a new one; the one before signs beside it for a day."""
    with services(request).database.write() as session:
        row = renew_secret(session, principal.project_id)
        record(session, "webhook_secret.create", principal.project_id, principal.project_id)
        view = SecretView(secret=row.secret, created_at=row.changed_at)
    return json_answer(request, view, status=201, headers={"Cache-Control": "no-store"})


@router.get(
    "", response_model=Page[DeliveryView], responses=document(GUARDED | INVALID) | NOT_MODIFIED
)
def list_webhooks(
    request: Request, principal: Reader, query: Annotated[DeliveryQuery, Query()]
) -> Response:
    """List messages about the project's jobs, newest first, and what became of them."""
    wanted = select(WebhookDelivery).where(WebhookDelivery.project_id == principal.project_id)
    if query.job_id is not None:
        wanted = wanted.where(WebhookDelivery.job_id == query.job_id)
    if query.after is not None:
        wanted = wanted.where(WebhookDelivery.id < query.after)
    with services(request).database.read() as session:
        rows = session.scalars(
            wanted.order_by(WebhookDelivery.id.desc()).limit(query.limit + 1)
        ).all()
    views = [DeliveryView.model_validate(row) for row in rows]
    return json_answer(request, take_page(views, query.limit))
