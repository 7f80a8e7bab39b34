"""Bodies of datasets."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import BaseModel

from app.fields import Labels, Name, Sha256, UploadId


class DatasetFromUpload(BaseModel):
    """A dataset made of a finished upload of /v1/uploads."""

    model_config = {"extra": "forbid", "use_attribute_docstrings": True}

    upload_id: UploadId
    name: Name
    labels: Labels = {}
    sha256: Sha256 | None = None
    """Of the file, in hex, to be sure."""


class ArrayView(BaseModel):
    """One array; the first axis is the sample."""

    name: str
    dtype: str
    shape: list[int]


class DatasetView(BaseModel):
    """An uploaded npz or safetensors file."""

    model_config = {"from_attributes": True, "use_attribute_docstrings": True}

    id: str
    name: str
    format: Literal["npz", "safetensors"]
    size_bytes: int
    sha256: str
    samples: int
    arrays: list[ArrayView]
    """Inputs in the order of forward's arguments, then the label."""
    has_labels: bool
    created_at: datetime
    labels: dict[str, str]
