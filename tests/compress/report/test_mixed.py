"""What a report tells of a mixed plan."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.report.mixed import mixed_plots, mixed_tables
from compress.report.write import render
from tests.compress.report.test_report import result

BROKEN = {
    "steps": 0, "layers": {"int8": 2}, "size_bytes": 1000, "latency_ms": 1.0, "sqnr_db": 3.0,
    "quality": {"metric": "top1", "value": 0.1, "samples": 9, "drop": 0.8},
    "keeps_bound": False, "chosen": False,
}  # fmt: skip
RIGHT = {
    **BROKEN, "steps": 1, "layers": {"int8": 1, "fp16": 1}, "size_bytes": 1500, "sqnr_db": 40.0,
    "quality": {"metric": "top1", "value": 0.9, "samples": 9, "drop": 0.0},
    "keeps_bound": True, "chosen": True,
}  # fmt: skip
STORY: dict[str, Any] = {
    "bound": {"max_accuracy_drop": 0.01},
    "plan": {"<b>": "fp16", "fc": "int8"},
    "trials": [BROKEN, RIGHT],
    "sensitivity": [
        {"name": "<b>", "type": "Linear", "precision": "int8", "sqnr_db": 3.0,
         "size_bytes": [400, 100], "time_us": [5.0, None]},
    ],
}  # fmt: skip


@pytest.mark.slow
def test_each_plan_tried_is_a_row_and_a_point() -> None:
    told = replace(result(), mixed=STORY)
    tables = {table["label"]: table for table in mixed_tables(told)}
    assert [row[0] for row in tables["trials"]["rows"]] == ["2 int8", "1 int8, 1 fp16"]
    assert tables["sensitivity"]["rows"][0][:3] == ["<b>", "Linear", "int8"]
    assert [plot.title for plot in mixed_plots(told)] == [
        "Plans: size and accuracy", "Plans: speed and accuracy",
    ]  # fmt: skip
    page = render(told)
    assert "1 int8, 1 fp16" in page
    assert "<b>" not in page
    assert "&lt;b&gt;" in page


def test_other_methods_have_no_such_part() -> None:
    assert mixed_tables(result()) == []
    assert mixed_plots(result()) == []
    assert "Mixed precision" not in render(result())
