"""Typed answers of the service. Times are aware datetimes, sizes bytes, latencies milliseconds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tersor.parsing import View


@dataclass(frozen=True, kw_only=True)
class Model(View):
    """One uploaded TorchScript file."""

    id: str
    name: str = ""
    format: str = "torchscript"
    size_bytes: int = 0
    sha256: str = ""
    status: str = "ready"
    inputs: tuple[Mapping[str, Any], ...] | None = None
    operators: Mapping[str, int] = field(default_factory=dict)
    parameters: int | None = None
    arguments: tuple[Mapping[str, Any], ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Array(View):
    """One array of a dataset; the first axis of `shape` is the sample."""

    name: str
    dtype: str = ""
    shape: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Dataset(View):
    """One uploaded npz or safetensors file."""

    id: str
    name: str = ""
    format: str = "npz"
    size_bytes: int = 0
    sha256: str = ""
    samples: int = 0
    arrays: tuple[Array, ...] = ()
    has_labels: bool = False
    labels: Mapping[str, str] = field(default_factory=dict)
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Event(View):
    """Something that happened to a job: type status, stage, progress, metrics or log."""

    id: int | str
    type: str = "log"
    level: str = "info"
    message: str = ""
    data: Mapping[str, Any] | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class JobError(View):
    """Why a job ended without success; `message` says what to do."""

    code: str = "unknown"
    message: str = ""
    stage: str | None = None
    retryable: bool = False
    details: Mapping[str, Any] | None = None


@dataclass(frozen=True, kw_only=True)
class Latency(View):
    """Milliseconds per call at batch 1, over `runs` timed calls."""

    p50: float | None = None
    p90: float | None = None
    p99: float | None = None
    mean: float | None = None
    runs: int | None = None


@dataclass(frozen=True, kw_only=True)
class Ratio(View):
    """A measured ratio and its 95 % confidence interval."""

    value: float | None = None
    ci95: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Throughput(View):
    """Samples per second at one batch size."""

    batch_size: int = 1
    samples_per_s: float | None = None


@dataclass(frozen=True, kw_only=True)
class Quality(View):
    """One metric over `samples`; `drop` against the baseline, positive when worse."""

    metric: str = ""
    value: float | None = None
    samples: int | None = None
    drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fidelity(View):
    """How close the artifact's outputs are to the original's."""

    sqnr_db: float | None = None
    cosine: float | None = None
    top1_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Artifact(View):
    """One file that a job made. Reports and manifests carry no figures."""

    id: str
    name: str = ""
    kind: str = "model"
    format: str = ""
    precision: str | None = None
    size_bytes: int = 0
    sha256: str = ""
    compression_ratio: float | None = None
    verdict: str = "not_measured"
    speedup: Ratio | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    throughput: tuple[Throughput, ...] = ()
    peak_memory_bytes: int | None = None
    quality: Quality | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline(View):
    """The original file, measured as the artifacts are."""

    size_bytes: int = 0
    parameters: int | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    throughput: tuple[Throughput, ...] = ()
    peak_memory_bytes: int | None = None
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class Layer(View):
    """One weighted layer: bytes before and after, and the reason where it stayed float."""

    name: str
    type: str = ""
    precision: str = ""
    size_bytes: tuple[int, int] | None = None
    sqnr_db: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Undelivered(View):
    """A format that was asked for and could not be made, and why."""

    format: str = ""
    code: str = ""
    reason: str = ""


@dataclass(frozen=True, kw_only=True)
class Result(View):
    """The figures of a job. `recommended` is the id of an artifact, or None.

    It keeps `max_accuracy_drop`, a fraction; None in results of services that did not tell it.
    """

    baseline: Baseline = field(default_factory=Baseline)
    artifacts: tuple[Artifact, ...] = ()
    undelivered: tuple[Undelivered, ...] = ()
    recommended: str | None = None
    max_accuracy_drop: float | None = None
    layers: tuple[Layer, ...] = ()
    mixed: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Key(View):
    """An API key. `key`, the secret, is there only in the answer that made it."""

    id: str
    name: str = ""
    project_id: str = ""
    prefix: str = ""
    scopes: tuple[str, ...] = ()
    created_at: datetime | None = None
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    key: str | None = field(default=None, repr=False)


@dataclass(frozen=True, kw_only=True)
class Project(View):
    """Owner of models, datasets and jobs. A limit that is None does not bind.

    `usage` is there only where one project was looked at.
    """

    id: str
    name: str = ""
    created_at: datetime | None = None
    limits: Mapping[str, int | None] = field(default_factory=dict)
    expires_after_s: int | None = None
    usage: Mapping[str, int] | None = None


@dataclass(frozen=True, kw_only=True)
class WebhookSecret(View):
    """What messages are signed with from now on; shown this once."""

    secret: str = field(repr=False)
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Delivery(View):
    """A message about a job: status pending, delivered or failed; `error` is of the last try."""

    id: str
    job_id: str = ""
    type: str = ""
    url: str = ""
    status: str = "pending"
    attempts: int = 0
    response_status: int | None = None
    error: str | None = None
    created_at: datetime | None = None
    delivered_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class AuditEvent(View):
    """A change. `key_id` is None where a command on the server itself made it."""

    id: str
    action: str = ""
    subject_id: str = ""
    project_id: str = ""
    key_id: str | None = None
    request_id: str | None = None
    details: Mapping[str, Any] | None = None
    created_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class Preflight(View):
    """What a job could do. `ok` is None until it is known, which `finished` tells."""

    id: str
    status: str = ""
    finished: bool = False
    ok: bool | None = None
    error: JobError | None = None
    result: Mapping[str, Any] | None = None
    queue_length: int | None = None
    created_at: datetime | None = None
    finished_at: datetime | None = None


@dataclass(frozen=True, kw_only=True)
class MethodInfo(View):
    """One compression method and the defaults of its config."""

    name: str
    description: str = ""
    defaults: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class System(View):
    """The state of the service: `queues` counts the unfinished jobs of each queue."""

    version: str = ""
    devices: tuple[str, ...] = ()
    workers: tuple[Mapping[str, Any], ...] = ()
    queues: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    limits: Mapping[str, float] = field(default_factory=dict)
