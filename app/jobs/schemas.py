"""Bodies of jobs. What a method's config may hold is written in `compress.spec` alone."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
)

from app.fields import DatasetId, LabelKey, Labels, ModelId
from app.responses import PageQuery
from compress.spec import Backend, ConvertConfig, Device, Format, Method, Metric, PtqConfig

Status = Literal["queued", "running", "succeeded", "failed", "cancelled"]

_STRICT = ConfigDict(extra="forbid", use_attribute_docstrings=True)


class Calibration(BaseModel):
    """Data that activation ranges are found on."""

    model_config = _STRICT

    dataset_id: DatasetId
    samples: Annotated[StrictInt, Field(ge=1, le=1_000_000)] = 256
    """At most so many samples are used."""
    batch_size: Annotated[StrictInt, Field(ge=1, le=65_536)] = 32


class Evaluation(BaseModel):
    """Data that quality is measured on."""

    model_config = _STRICT

    dataset_id: DatasetId
    metric: Metric | None = None
    """Default: `top1` for class labels, `mse` for float targets, `agreement` without labels."""


class JobFields(BaseModel):
    """What jobs of every method share."""

    model_config = _STRICT

    model_id: ModelId
    calibration: Calibration | None = None
    evaluation: Evaluation | None = None
    formats: Annotated[list[Format], Field(min_length=1, max_length=8)] = ["torchscript"]
    """File formats of the artifacts."""
    backend: Backend = "x86"
    """Kind of processor the artifacts are for."""
    device: Device = "auto"
    """Where the job computes."""
    max_accuracy_drop: Annotated[StrictFloat, Field(ge=0, le=1, allow_inf_nan=False)] = 0.01
    """Budget for `recommended`: 0.01 is one point."""
    seed: Annotated[StrictInt, Field(ge=0, lt=2**32)] = 0
    priority: Annotated[StrictInt, Field(ge=-100, le=100)] = 0
    """Higher runs first."""
    timeout_s: Annotated[StrictInt, Field(ge=1)] | None = None
    """Default and maximum: see `/v1/system`."""
    labels: Labels = {}


_EXAMPLE: dict[str, Any] = {
    "model_id": "mdl_01jd3m0c3rr0qapczb6x2y4t8k",
    "calibration": {"dataset_id": "dst_01jd3m0c3rr0qapczb6x2y4t8k", "samples": 256},
    "labels": {"run": "42"},
}


class PtqJob(JobFields):
    """Post-training quantization."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"method": "ptq", **_EXAMPLE}]})

    method: Literal["ptq"]
    config: PtqConfig = PtqConfig()


class ConvertJob(JobFields):
    """Formats and half precision only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"method": "convert", "config": {"precision": "fp16"}, **_EXAMPLE}]
        }
    )

    method: Literal["convert"]
    config: ConvertConfig = ConvertConfig()


JobRequest = Annotated[PtqJob | ConvertJob, Field(discriminator="method")]


def _full_time(value: Any) -> Any:
    # left alone, pydantic takes a bare number for seconds since 1970, and a date for midnight
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:", value, re.ASCII) is None:
        raise ValueError("an RFC 3339 time, please, such as 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime | None) -> datetime | None:
    try:
        return None if value is None else value.astimezone(UTC)
    except OverflowError:  # within hours of year 1 or 9999, an offset leads out of the calendar
        raise ValueError("a time between the years 1 and 9999 in UTC, please") from None


class JobQuery(PageQuery):
    """Which jobs."""

    status: Status | None = None
    method: Method | None = None
    created_after: Annotated[
        AwareDatetime | None, BeforeValidator(_full_time), AfterValidator(_in_utc)
    ] = None
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


class JobError(BaseModel):
    """Why a job failed; `message` says what to do."""

    code: str
    message: str
    stage: str | None = None
    retryable: bool = False


class JobUrls(BaseModel):
    """Where to go from here."""

    self: str
    cancel: str
    events: str
    artifacts: str


class JobView(BaseModel):
    """A job. Wait until `finished`."""

    model_config = {"use_attribute_docstrings": True}

    id: str
    method: str
    status: Status
    finished: bool
    stage: str | None
    progress: float
    message: str
    eta_seconds: float | None
    attempt: int
    queue_position: int | None
    """1 is next; null in lists, and once it has left the queue."""
    cancel_requested_at: datetime | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    error: JobError | None
    result: dict[str, Any] | None
    """Figures of a succeeded job: baseline, artifacts, recommended, layers, environment,
    provenance."""
    labels: dict[LabelKey, str]
    urls: JobUrls
    spec: dict[str, Any]
    """The request, with all defaults filled in."""


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
    """Jobs that wait in the queue this one would join."""
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
