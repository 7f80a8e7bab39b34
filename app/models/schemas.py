"""Bodies of models."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, TypeAdapter, ValidatorFunctionWrapHandler, WrapValidator

from app.fields import ArtifactId, Labels, Name, Sha256, UploadId
from compress.spec import TensorSpec

_PLAIN_INPUTS: TypeAdapter[list[TensorSpec]] = TypeAdapter(list[TensorSpec])


def _refuse_lookalikes(value: Any, validate: ValidatorFunctionWrapHandler) -> list[TensorSpec]:
    """Refuse `"5"`, `true` and `5.0` where a whole number belongs.

    Only JSON text can be read strictly: strict dataclasses take no objects, strict tuples no lists.
    """
    validate(value)  # what is left after it can be written as JSON
    return _PLAIN_INPUTS.validate_json(json.dumps(value), strict=True)


Inputs = Annotated[list[TensorSpec], WrapValidator(_refuse_lookalikes)]
InputsField: TypeAdapter[list[TensorSpec]] = TypeAdapter(Inputs)


class ModelFromArtifact(BaseModel):
    """A model made of an artifact of a job."""

    model_config = {"extra": "forbid"}

    artifact_id: ArtifactId
    name: Name
    inputs: Inputs | None = None
    labels: Labels = {}


class ModelFromUpload(BaseModel):
    """A model made of a finished upload of /v1/uploads."""

    model_config = {"extra": "forbid", "use_attribute_docstrings": True}

    upload_id: UploadId
    name: Name
    inputs: Inputs | None = None
    labels: Labels = {}
    sha256: Sha256 | None = None
    """Of the file, in hex, to be sure."""


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
