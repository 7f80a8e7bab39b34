"""The application: services in the lifespan, middleware, routers, OpenAPI."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.concurrency import run_in_threadpool

from app import error_handlers
from app.audit.routes import router as audit_router
from app.auth.routes import router as auth_router
from app.body_guard import BodyGuardMiddleware
from app.datasets.routes import router as datasets_router
from app.datasets.schemas import DatasetFromUpload
from app.db import Database
from app.head import HeadMiddleware
from app.jobs.artifact_routes import router as artifacts_router
from app.jobs.method_routes import router as methods_router
from app.jobs.preflight_routes import router as preflight_router
from app.jobs.routes import router as jobs_router
from app.jobs.waiter import JobWaiter
from app.limits.rate import RateLimiter
from app.limits.waits import Waits
from app.metrics.http import HttpMetrics, MetricsMiddleware
from app.metrics.routes import router as metrics_router
from app.models.routes import router as models_router
from app.models.schemas import ModelFromArtifact, ModelFromUpload
from app.problems import Problem
from app.projects.routes import router as projects_router
from app.queue import Publisher
from app.request_id import RequestIdMiddleware
from app.settings import Settings, get_settings
from app.state import Services
from app.storage import open_store
from app.system.routes import install_memory
from app.system.routes import router as system_router
from app.uploads.protocol import TusMiddleware
from app.uploads.routes import router as uploads_router
from app.version import VERSION
from app.webhooks.routes import router as webhooks_router

_ROUTERS: tuple[APIRouter, ...] = (
    jobs_router,  # first, since routes are tried in this order, and clients poll
    uploads_router,
    models_router,
    datasets_router,
    preflight_router,
    artifacts_router,
    methods_router,
    auth_router,
    projects_router,
    audit_router,
    system_router,
    metrics_router,
    webhooks_router,
)
_UPLOAD_PATHS = frozenset({"/v1/models", "/v1/datasets"})


def create_app(settings: Settings | None = None) -> FastAPI:
    """Return the application; it opens its database and broker when it starts."""
    settings = settings or get_settings()
    http_metrics = HttpMetrics()

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        publisher = Publisher(settings.broker_url)
        database = Database(settings, publisher)
        waiter = JobWaiter(database)
        app.state.services = Services(
            settings,
            database,
            publisher,
            open_store(settings.storage_url),
            waiter,
            RateLimiter(settings.broker_url),
            Waits(per_project=settings.limits.waiting_per_project, in_all=settings.limits.waiting),
            http_metrics,
        )
        install_memory(app.state)
        try:
            yield
        finally:
            await waiter.close()
            await run_in_threadpool(publisher.close)
            database.close()

    app = FastAPI(
        title="Tersor",
        version=VERSION,
        summary="Makes TorchScript models smaller and faster.",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # both pages load scripts from elsewhere
        redoc_url=None,
        generate_unique_id_function=lambda route: route.name,
    )
    for router in _ROUTERS:
        app.include_router(router)
    error_handlers.install(app)
    app.add_middleware(
        BodyGuardMiddleware,
        limit_bytes=settings.limits.json_bytes,
        stall_s=settings.limits.upload_stall_s,
        upload_paths=_UPLOAD_PATHS,
    )
    app.add_middleware(HeadMiddleware)
    app.add_middleware(TusMiddleware)
    app.add_middleware(MetricsMiddleware, metrics=http_metrics)
    app.add_middleware(RequestIdMiddleware)  # added last: outermost

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = _describe(app)
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
    return app


def _describe(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with the schemas that only our own references name."""
    document = get_openapi(
        title=app.title, version=app.version, summary=app.summary, routes=app.routes
    )
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    for model in (Problem, ModelFromArtifact, ModelFromUpload, DatasetFromUpload):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    return document
