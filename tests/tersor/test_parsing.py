"""Typed answers: what they hold, and how they bear other versions of the service."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime

import pytest

from tersor.parsing import parse
from tersor.views import Dataset, Model, Result


def test_fields_of_a_newer_service_do_not_matter_and_stay_readable() -> None:
    model = parse(Model, {"id": "mdl_1", "invented_later": {"a": 1}})
    assert model.id == "mdl_1"
    assert model.raw["invented_later"] == {"a": 1}


def test_fields_that_an_older_service_lacks_take_their_default() -> None:
    assert parse(Result, {}).artifacts == ()


def test_nested_objects_lists_and_times_are_typed() -> None:
    data = {
        "id": "dst_1", "created_at": "2026-01-02T03:04:05.5Z",
        "arrays": [{"name": "input", "dtype": "float32", "shape": [5, 3]}],
    }  # fmt: skip
    dataset = parse(Dataset, data)
    assert dataset.arrays[0].shape == (5, 3)
    assert dataset.created_at == datetime(2026, 1, 2, 3, 4, 5, 500_000, tzinfo=UTC)


def test_null_stays_none() -> None:
    result = parse(Result, {"baseline": {"latency_ms": None}, "recommended": None})
    assert result.baseline.latency_ms is None


def test_answers_cannot_be_changed() -> None:
    model = parse(Model, {"id": "mdl_1"})
    with pytest.raises(dataclasses.FrozenInstanceError):
        model.id = "mdl_2"  # type: ignore[misc]
