"""Bodies of jobs. What a method's config may hold is written in `compress.spec` alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    StrictFloat,
    StrictInt,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticCustomError

from app.fields import DatasetId, Labels, ModelId
from app.jobs.config_schemas import Described
from compress.spec import (
    Backend,
    ConvertConfig,
    Device,
    DistillConfig,
    Format,
    Metric,
    MixedConfig,
    PtqConfig,
    QatConfig,
)

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


class WebhookTarget(BaseModel):
    """Whom to tell when the job has ended, as Standard Webhooks say; signed with the secret."""

    model_config = _STRICT

    url: Annotated[str, StringConstraints(max_length=2000, pattern=r"^https?://[!-~]+$")]
    events: Annotated[
        list[Literal["succeeded", "failed", "cancelled"]], Field(min_length=1, max_length=3)
    ] = ["succeeded", "failed", "cancelled"]


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
    webhook: WebhookTarget | None = None


_EXAMPLE: dict[str, Any] = {
    "model_id": "mdl_01jd3m0c3rr0qapczb6x2y4t8k",
    "calibration": {"dataset_id": "dst_01jd3m0c3rr0qapczb6x2y4t8k", "samples": 256},
    "labels": {"run": "42"},
}


_TRAINING_EXAMPLE: dict[str, Any] = {
    "model_id": "mdl_01jd3m0c3rr0qapczb6x2y4t8k",
    "training_dataset_id": "dst_01jd3m0c3rr0qapczb6x2y4t8k",
    "evaluation": {"dataset_id": "dst_01jd3m0c3rr0qapczb6x2y4t8m", "metric": "top1"},
}


class PtqJob(JobFields):
    """Post-training quantization."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"method": "ptq", **_EXAMPLE}]})

    method: Literal["ptq"]
    config: PtqConfig = PtqConfig()


class TrainingJob(JobFields):
    """What jobs that train share."""

    training_dataset_id: DatasetId
    """Data to learn from."""

    @model_validator(mode="before")
    @classmethod
    def _bring_dataset_here(cls, body: Any) -> Any:
        return _bring("training_dataset_id", body, into_config=False)


class QatJob(TrainingJob):
    """Quantization-aware training."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "qat",
                    **_TRAINING_EXAMPLE,
                    "config": {"epochs": 3, "learning_rate": 5e-4, "loss": "distill"},
                }
            ]
        }
    )

    method: Literal["qat"]
    config: Annotated[QatConfig, Described(QatConfig)] = QatConfig()


class DistillJob(TrainingJob):
    """Distillation: `model_id` is the teacher."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "method": "distill",
                    **_TRAINING_EXAMPLE,
                    "config": {
                        "student_model_id": "mdl_01jd3m0c3rr0qapczb6x2y4t8m",
                        "epochs": 20,
                        "temperature": 5.0,
                        "alpha": 0.7,
                    },
                },
                {
                    "method": "distill",
                    **_TRAINING_EXAMPLE,
                    "config": {"prune": 0.5, "epochs": 20, "finetune_epochs": 2},
                },
            ]
        }
    )

    method: Literal["distill"]
    config: Annotated[DistillConfig, Described(DistillConfig)]

    @model_validator(mode="before")
    @classmethod
    def _bring_student_to_config(cls, body: Any) -> Any:
        return _bring("student_model_id", body, into_config=True)


class MixedJob(JobFields):
    """Mixed precision within a bound."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"method": "mixed", "config": {"max_accuracy_drop": 0.005}, **_EXAMPLE}]
        }
    )

    method: Literal["mixed"]
    config: MixedConfig = MixedConfig()


class ConvertJob(JobFields):
    """Formats and half precision only."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"method": "convert", "config": {"precision": "fp16"}, **_EXAMPLE}]
        }
    )

    method: Literal["convert"]
    config: ConvertConfig = ConvertConfig()


AnyJob = PtqJob | QatJob | DistillJob | MixedJob | ConvertJob
JobRequest = Annotated[AnyJob, Field(discriminator="method")]


def _bring(name: str, body: Any, *, into_config: bool) -> Any:
    """Move a field home that was given in the config instead of beside it, or the other way.

    Raises:
        ValidationError: It is given in both places, and differs.
    """
    if not isinstance(body, Mapping) or not isinstance(body.get("config", {}), Mapping):
        return body
    beside, config = dict(body), dict(body.get("config", {}))
    source, home = (beside, config) if into_config else (config, beside)
    if name not in source:
        return body
    moved = source.pop(name)
    if home.get(name, moved) != moved:
        told = PydanticCustomError("given_twice", "given twice, in config and beside it")
        raise ValidationError.from_exception_data(
            "job", [InitErrorDetails(type=told, loc=(name,), input=moved)]
        )
    home[name] = moved
    return {**beside, "config": config} if config or "config" in beside else beside
