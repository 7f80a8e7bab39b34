"""What a job returns: plain dataclasses that mirror the `result` object of the HTTP API."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

from compress.spec import LayerPrecision, Stage

Verdict = Literal["faster", "not_faster", "not_measured"]


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Milliseconds per call at batch 1, and how many calls were timed."""

    p50: float
    p90: float
    p99: float
    mean: float
    runs: int


@dataclass(frozen=True, kw_only=True)
class Ratio:
    """A measured ratio with its 95 % confidence interval `[low, high]`."""

    value: float
    ci95: tuple[float, float]


@dataclass(frozen=True, kw_only=True)
class Throughput:
    """Samples per second at one batch size."""

    batch_size: int
    samples_per_s: float


@dataclass(frozen=True, kw_only=True)
class Quality:
    """One quality metric over `samples` evaluation samples; `drop` against the baseline."""

    metric: str
    value: float
    samples: int
    drop: float | None = None


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """How close the artifact's outputs are to the original's on evaluation inputs."""

    sqnr_db: float
    cosine: float
    top1_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """The original file, measured as the artifacts are."""

    size_bytes: int
    parameters: int
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    throughput: list[Throughput] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    quality: Quality | None = None


@dataclass(frozen=True, kw_only=True)
class ArtifactReport:
    """One finished file. `name` is its file name inside the output folder.

    `peak_memory_bytes` is what a fresh process that loads and runs it takes beyond its runtime.
    """

    name: str
    format: str
    precision: str
    size_bytes: int
    sha256: str
    compression_ratio: float
    verdict: Verdict = "not_measured"
    speedup: Ratio | None = None
    latency_ms: Latency | None = None
    throughput_per_s: float | None = None
    throughput: list[Throughput] = field(default_factory=list)
    peak_memory_bytes: int | None = None
    quality: Quality | None = None
    fidelity: Fidelity | None = None


@dataclass(frozen=True, kw_only=True)
class Undelivered:
    """A format that was asked for and could not be made: why, and what to do."""

    format: str
    code: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One weighted layer: bytes before and after, output SQNR, and why it stayed float."""

    name: str
    type: str
    precision: LayerPrecision | Literal["int4"]
    size_bytes: tuple[int, int]
    sqnr_db: float | None = None
    reason: str | None = None


@dataclass(frozen=True, kw_only=True)
class Environment:
    """The machine and software the figures were measured on."""

    cpu: str
    isa: list[str]
    threads: int
    torch: str
    device: str


@dataclass(frozen=True, kw_only=True)
class Result:
    """All figures of a job.

    `recommended` is the name of an artifact that keeps `max_accuracy_drop`, a fraction, or None.
    `mixed` tells how a mixed plan was found: `bound`, `plan` (layer to precision), `trials` (each
    plan tried: `layers` by precision, `size_bytes`, `latency_ms`, `sqnr_db`, `quality`,
    `keeps_bound`, `chosen`) and `sensitivity` (of each layer in each precision: `sqnr_db` of the
    outputs, `size_bytes` and `time_us` before and after).
    """

    baseline: Baseline
    artifacts: list[ArtifactReport]
    undelivered: list[Undelivered] = field(default_factory=list)
    recommended: str | None
    max_accuracy_drop: float
    layers: list[Layer]
    environment: Environment
    provenance: Mapping[str, Any]
    lift: Mapping[str, Any] = field(default_factory=dict)
    mixed: Mapping[str, Any] | None = None
    training: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, in the shape of the API's `result`."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """Files of a job.

    Attributes:
        model: The model; of a distillation the teacher.
        calibration: Samples for scales.
        evaluation: Samples that quality is measured on.
        model_inputs: The shapes declared at the model's upload, if any.
        training: Samples to learn from.
        student: The model that a distillation trains.
        checkpoints: An existing folder that outlives this process: training goes on from what lies
            there, and leaves its state there.
    """

    model: Path
    calibration: Path | None = None
    evaluation: Path | None = None
    model_inputs: tuple[Any, ...] = ()
    training: Path | None = None
    student: Path | None = None
    checkpoints: Path | None = None


class Sink(Protocol):
    """Where the engine tells how far it is. Calls are cheap; the receiver throttles."""

    def stage(self, stage: Stage, message: str) -> None:
        """A new stage began."""

    def progress(self, fraction: float, message: str) -> None:
        """`fraction` of the whole job is done, from 0 to 1."""

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        """Something worth keeping: `type` is `metrics` or `log`."""
