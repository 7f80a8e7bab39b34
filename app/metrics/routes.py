"""`/metrics`, in the text format of Prometheus."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Depends, Request, Response, Security
from fastapi.security import HTTPAuthorizationCredentials
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest

from app.auth.principal import bearer, require
from app.errors import NotFound
from app.metrics.snapshot import Snapshot
from app.problems import GUARDED, document
from app.state import services

router = APIRouter(tags=["service"])

_admin = require("admin")


def _admit(
    request: Request,
    credentials: Annotated[HTTPAuthorizationCredentials | None, Security(bearer)],
) -> None:
    access = services(request).settings.metrics
    if access == "off":
        raise NotFound("Metrics are off: TERSOR_METRICS.")
    if access == "key":
        _admin(request, credentials)


@router.get(
    "/metrics",
    response_class=Response,
    responses={
        200: {"content": {"text/plain": {"schema": {"type": "string"}}}},
        **document(GUARDED | {404: ["not_found"]}),
    },
    dependencies=[Depends(_admit)],
)
def get_metrics(request: Request) -> Response:
    """Figures for Prometheus; by default only for a key with the scope `admin`."""
    state = services(request)
    registry = CollectorRegistry()
    registry.register(Snapshot(state.database, state.store))
    body = generate_latest(state.http_metrics.registry) + generate_latest(registry)
    return Response(body, headers={"Content-Type": CONTENT_TYPE_LATEST})
