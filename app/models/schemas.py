"""Bodies of models."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel, TypeAdapter

from app.fields import ArtifactId, Labels, Name
from compress.spec import TensorSpec

InputsField: TypeAdapter[list[TensorSpec]] = TypeAdapter(list[TensorSpec])


class ModelFromArtifact(BaseModel):
    """A model made of an artifact of a job."""

    model_config = {"extra": "forbid"}

    artifact_id: ArtifactId
    name: Name
    inputs: list[TensorSpec] | None = None
    labels: Labels = {}


class Argument(BaseModel):
    """One argument of forward."""

    model_config = {"use_attribute_docstrings": True}

    name: str
    type: str
    """As TorchScript prints it."""
    has_default: bool
    fields: dict[str, dict[str, str]] = {}
    """Of each named tuple in `type`: field to type."""


class ModelView(BaseModel):
    """An uploaded TorchScript file."""

    model_config = {"from_attributes": True, "use_attribute_docstrings": True}

    id: str
    name: str
    format: Literal["torchscript"] = "torchscript"
    size_bytes: int
    sha256: str
    status: Literal["ready", "rejected"]
    inputs: list[dict[str, Any]] | None
    """As declared at upload: `[{name, dtype, shape, value}]`."""
    arguments: list[Argument]
    """Of forward, read from its code."""
    operators: dict[str, int]
    """Operator to number of calls in the code."""
    parameters: int
    created_at: datetime
    labels: dict[str, str]
