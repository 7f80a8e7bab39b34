"""Types of fields that several resources share."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AfterValidator, AwareDatetime, BeforeValidator, Field, StringConstraints

_ID = re.compile(r"[a-z]{3}_[0-9a-z]{26}")


def is_id(text: str, prefix: str) -> bool:
    """Return whether the text has the form of one of our ids."""
    return text.startswith(prefix + "_") and _ID.fullmatch(text) is not None


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError("only printable characters, please")
    return text


def _full_time(value: Any) -> Any:
    # left alone, pydantic takes a bare number for seconds since 1970, and a date for midnight
    if isinstance(value, str) and re.match(r"\d{4}-\d\d-\d\dT\d\d:", value, re.ASCII) is None:
        raise ValueError("an RFC 3339 time, please, such as 2026-01-31T12:00:00Z")
    return value


def _in_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:  # within hours of year 1 or 9999, an offset leads out of the calendar
        raise ValueError("a time between the years 1 and 9999 in UTC, please") from None


def _in_future(value: datetime) -> datetime:
    if value <= datetime.now(UTC):
        raise ValueError("a time in the future, please")
    return value


Time = Annotated[AwareDatetime, BeforeValidator(_full_time), AfterValidator(_in_utc)]
FutureTime = Annotated[Time, AfterValidator(_in_future)]
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
UploadId = Annotated[str, StringConstraints(pattern=r"^upl_[0-9a-z]{26}$")]
ProjectId = Annotated[str, StringConstraints(pattern=r"^prj_[0-9a-z]{26}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
