"""Methods, and JSON Schema of what their config may hold."""

from __future__ import annotations

import inspect
from typing import Any, cast

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import RootModel

from app.auth.principal import Reader
from app.errors import NotFound
from app.jobs.config_schemas import config_defaults, config_schema
from app.jobs.schemas import MethodList, MethodView
from app.problems import GUARDED, INVALID, document
from app.responses import NOT_MODIFIED, json_answer
from compress.spec import METHODS, Method

router = APIRouter(prefix="/v1/methods", tags=["jobs"])

_ONE = GUARDED | INVALID | {404: ["not_found"]}


@router.get("", response_model=MethodList, responses=document(GUARDED) | NOT_MODIFIED)
def list_methods(request: Request, _principal: Reader) -> Response:
    """List the methods that this server knows."""
    return json_answer(request, MethodList(data=[_show(name) for name in METHODS]))


@router.get("/{method}", response_model=MethodView, responses=document(_ONE) | NOT_MODIFIED)
def get_method(request: Request, _principal: Reader, method: str) -> Response:
    """Look at one method."""
    return json_answer(request, _show(_known(method)))


@router.get(
    "/{method}/schema",
    response_class=JSONResponse,
    response_model=dict[str, Any],
    responses=document(_ONE) | NOT_MODIFIED,
)
def get_method_schema(request: Request, _principal: Reader, method: str) -> Response:
    """JSON Schema of the method's `config`, with defaults."""
    return json_answer(request, RootModel[dict[str, Any]](config_schema(_known(method))))


def _known(method: str) -> str:
    if method not in METHODS:
        raise NotFound(f"There is no such method; there are {', '.join(METHODS)}.")
    return method


def _show(method: str) -> MethodView:
    return MethodView(
        name=cast(Method, method),
        description=inspect.getdoc(METHODS[method]) or "",
        defaults=config_defaults(method),
        schema_url=f"/v1/methods/{method}/schema",
    )
