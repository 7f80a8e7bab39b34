"""Tersor's Python client. Light: importing it loads neither torch nor numpy."""

from __future__ import annotations

from tersor._version import get_version
from tersor.client import Client
from tersor.errors import (
    ApiError,
    BadRequest,
    ConfigurationError,
    Conflict,
    DigestMismatch,
    FieldError,
    FileChanged,
    Forbidden,
    JobFailed,
    NotFound,
    RateLimited,
    ServerError,
    TersorError,
    TooLarge,
    TransportError,
    Unauthorized,
    Unavailable,
    Unprocessable,
    WaitTimeout,
)
from tersor.jobs import Job
from tersor.views import (
    Array,
    Artifact,
    Baseline,
    Dataset,
    Event,
    Fidelity,
    JobError,
    Key,
    Latency,
    Layer,
    MethodInfo,
    Model,
    Preflight,
    Project,
    Quality,
    Ratio,
    Result,
    System,
)

__all__ = [
    "ApiError",
    "Array",
    "Artifact",
    "BadRequest",
    "Baseline",
    "Client",
    "ConfigurationError",
    "Conflict",
    "Dataset",
    "DigestMismatch",
    "Event",
    "Fidelity",
    "FieldError",
    "FileChanged",
    "Forbidden",
    "Job",
    "JobError",
    "JobFailed",
    "Key",
    "Latency",
    "Layer",
    "MethodInfo",
    "Model",
    "NotFound",
    "Preflight",
    "Project",
    "Quality",
    "RateLimited",
    "Ratio",
    "Result",
    "ServerError",
    "System",
    "TersorError",
    "TooLarge",
    "TransportError",
    "Unauthorized",
    "Unavailable",
    "Unprocessable",
    "WaitTimeout",
]


def __getattr__(name: str) -> str:
    if name == "__version__":
        return get_version()
    raise AttributeError(f"module 'tersor' has no attribute {name!r}")
