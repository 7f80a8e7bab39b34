"""Types of fields that several resources share."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints

_ID = re.compile(r"[a-z]{3}_[0-9a-z]{26}")


def is_id(text: str, prefix: str) -> bool:
    """Return whether the text has the form of one of our ids."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters, please")
    return text


Name = Annotated[
    str,
    StringConstraints(min_length=1, max_length=200),
    AfterValidator(_printable),
    Field(examples=["resnet18"]),
]
LabelKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._/-]{0,62}$")]
LabelValue = Annotated[str, StringConstraints(max_length=255), AfterValidator(_printable)]
Labels = Annotated[dict[LabelKey, LabelValue], Field(max_length=32, examples=[{"run": "42"}])]
ModelId = Annotated[str, StringConstraints(pattern=r"^mdl_[0-9a-z]{26}$")]
DatasetId = Annotated[str, StringConstraints(pattern=r"^dst_[0-9a-z]{26}$")]
ArtifactId = Annotated[str, StringConstraints(pattern=r"^art_[0-9a-z]{26}$")]
ProjectId = Annotated[str, StringConstraints(pattern=r"^prj_[0-9a-z]{26}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
