"""How uploads look as JSON."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel

from app.uploads.tables import PartialUpload


class UploadView(BaseModel):
    """A file that comes in pieces."""

    model_config = {"use_attribute_docstrings": True}

    id: str
    size_bytes: int
    offset_bytes: int
    """So much has arrived."""
    complete: bool
    """Whether a model or dataset can be made of it."""
    metadata: dict[str, str]
    created_at: datetime
    expires_at: datetime
    """When it is removed unless another piece comes."""


def show_upload(upload: PartialUpload) -> UploadView:
    """Return the upload as the API shows it."""
    return UploadView(
        id=upload.id,
        size_bytes=upload.size_bytes,
        offset_bytes=upload.offset_bytes,
        complete=upload.offset_bytes == upload.size_bytes,
        metadata=upload.upload_metadata,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
    )
