"""What is asked about jobs, and how they are shown."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.fields import Time
from app.jobs.views import Status
from app.responses import PageQuery
from compress.spec import Method

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class JobQuery(PageQuery):
    """Which jobs."""

    status: Status | None = None
    method: Method | None = None
    created_after: Time | None = None
    label: Annotated[
        str | None,
        Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}:[^\x00]{0,255}$"),
    ] = None
    """`key:value`."""


class EventQuery(BaseModel):
    """Which events."""

    model_config = _STRICT

    limit: Annotated[int, Field(ge=1, le=1000)] = 200
    after: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """`next_after` of the page before."""


class EventView(BaseModel):
    """Something that happened to a job."""

    model_config = {"from_attributes": True}

    id: int
    created_at: datetime
    level: Literal["debug", "info", "warning", "error"]
    type: Literal["status", "stage", "progress", "metrics", "log"]
    message: str
    data: dict[str, Any] | None


class ArtifactView(BaseModel):
    """A file that a job made."""

    id: str
    job_id: str
    name: str
    kind: str
    format: str
    precision: str | None
    size_bytes: int
    sha256: str
    created_at: datetime
    url: str


class PreflightError(BaseModel):
    """Why the job would fail."""

    code: str
    message: str


class PreflightUrls(BaseModel):
    """Where to poll."""

    self: str


class PreflightView(BaseModel):
    """What a job would do, found by running the model on a few samples."""

    model_config = {"use_attribute_docstrings": True}

    id: str
    status: Status
    finished: bool
    ok: bool | None
    """Whether the job can run; null until it is known."""
    error: PreflightError | None
    result: dict[str, Any] | None
    """Layers that can be compressed and those that cannot, and an estimate of size."""
    queue_length: int
    """Jobs that wait in the queue this one would join; 1000 stands for all that is more."""
    created_at: datetime
    finished_at: datetime | None
    urls: PreflightUrls


class MethodView(BaseModel):
    """A method and the defaults of its config."""

    name: Method
    description: str
    defaults: dict[str, Any]
    schema_url: str


class MethodList(BaseModel):
    """All methods."""

    data: list[MethodView]
