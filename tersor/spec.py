"""Builds the JSON body of a job from Python arguments; the service checks it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tersor.views import Dataset, Model

Data = str | Dataset | Mapping[str, Any] | None
"""A dataset, its id, or a mapping with `dataset_id` and more."""


def job_body(
    method: str,
    model_id: str | Model,
    *,
    calibration: Data = None,
    evaluation: Data = None,
    training: Dataset | str | None = None,
    student: Model | str | None = None,
    config: Mapping[str, Any] | None = None,
    labels: Mapping[str, str] | None = None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the body; what is None is left out, so that the service's defaults hold."""
    named = {
        "calibration": _data(calibration),
        "evaluation": _data(evaluation),
        "training_dataset_id": _id(training),
        "config": _config(config, _id(student)),
        "labels": dict(labels) if labels is not None else None,
        **fields,
    }
    return {
        "method": method,
        "model_id": _id(model_id),
        **{name: value for name, value in named.items() if value is not None},
    }


def _data(data: Data) -> dict[str, Any] | None:
    if data is None:
        return None
    if isinstance(data, str):
        return {"dataset_id": data}
    if isinstance(data, Dataset):
        return {"dataset_id": data.id}
    return dict(data)


def _id(given: Model | Dataset | str | None) -> str | None:
    return given if given is None or isinstance(given, str) else given.id


def _config(config: Mapping[str, Any] | None, student_id: str | None) -> dict[str, Any] | None:
    if student_id is None:
        return None if config is None else dict(config)
    return {**(config or {}), "student_model_id": student_id}
