"""What a report tells of a training."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.report.training import training_plots, training_tables
from compress.report.write import render
from tests.compress.report.test_report import HOSTILE, Page, result


def point(epoch: int, **fields: Any) -> dict[str, Any]:
    return {
        "epoch": epoch, "step": 10 * epoch, "loss": 2 / epoch,
        "parts": {"teacher": 1.5 / epoch, "labels": 0.5 / epoch}, "learning_rate": 1e-3 / epoch,
        "accuracy": 1 - 1 / (1 + epoch), "images_per_s": 1234.5,
    } | fields  # fmt: skip


def quality(value: float) -> dict[str, Any]:
    return {"metric": "top1", "value": value, "samples": 500, "drop": None}


RECORD: dict[str, Any] = {
    "epochs": 4, "steps": 40, "final": {"loss": 0.5}, "curve": [point(n) for n in (1, 2, 3, 4)],
    "student_before": quality(0.1034), "teacher": quality(0.9321), "student_after": quality(0.9287),
    "resumed_from_step": None, "seconds": 12.5, "images_per_s": 1234.5,
}  # fmt: skip


def test_what_training_won_and_how_it_went_is_told() -> None:
    page = Page(render(replace(result(), training=RECORD)))
    for told in (
        "Teacher 93.21 %", "Student before training 10.34 %", "Student after training 92.87 %",
        "epochs 4", "seconds 12.5", "Loss by epoch", "Accuracy by epoch",
    ):  # fmt: skip
        assert told in page.text, told
    assert "resumed" not in page.text
    labels = [attrs.get("aria-label") for tag, attrs in page.tags if tag == "svg"]
    assert {"Loss by epoch", "Accuracy by epoch"} <= set(labels)
    tables = {
        table["label"]: table for table in training_tables(replace(result(), training=RECORD))
    }
    columns, rows = tables["curve"]["columns"], tables["curve"]["rows"]
    assert len(rows) == 4
    assert dict(zip(columns, rows[1], strict=True)) == {
        "epoch": "2", "step": "20", "loss": "1.000", "accuracy": "0.6667",
        "samples per second": "1234", "learning rate": "0.0005", "teacher": "0.75",
        "labels": "0.25",
    }  # fmt: skip


def test_what_pruning_cut_is_a_table() -> None:
    layers = [
        {"name": "<conv>", "type": "Conv2d", "channels": (16, 8), "reason": None},
        {"name": "fc", "type": "Linear", "channels": (10, 10), "reason": "the answer holds it"},
    ]
    pruned = {"share": 0.5, "parameters_before": 900, "parameters_after": 300, "layers": layers}
    told = replace(result(), training=RECORD | {"pruned": pruned, "final": point(4)})
    tables = {table["label"]: table for table in training_tables(told)}
    assert [row[:4] for row in tables["channels"]["rows"]] == [
        ["<conv>", "Conv2d", "16", "8"], ["fc", "Linear", "10", "10"],
    ]  # fmt: skip
    assert ["parameters_after", "300"] in [list(map(str, row)) for row in tables["pruned"]["rows"]]
    assert ["labels", "0.125"] in tables["final"]["rows"]
    page = render(told)
    assert "&lt;conv&gt;" in page
    assert "the answer holds it" in page


def test_a_second_phase_is_drawn_behind_the_first() -> None:
    record = RECORD | {"curve": [point(1), point(2), point(1, parts={"labels": 0.4})]}
    plot = training_plots(replace(result(), training=record))[0]
    assert ">3<" in plot.svg  # the axis counts on
    assert training_plots(replace(result(), training=RECORD | {"curve": [point(1)]})) == []


def test_a_training_without_labels_shows_its_loss_alone() -> None:
    curve = [point(n, accuracy=None, parts={}) for n in (1, 2)]
    told = replace(result(), training={"epochs": 2, "curve": curve})
    assert [plot.title for plot in training_plots(told)] == ["Loss by epoch"]
    assert "accuracy" not in training_tables(told)[1]["columns"]


@pytest.mark.slow
def test_other_methods_have_no_such_part() -> None:
    assert training_plots(result()) == []
    assert training_tables(result()) == []
    assert "Training" not in Page(render(result())).texts


@pytest.mark.slow
def test_names_of_losses_are_hostile_input() -> None:
    curve = [point(n, parts={HOSTILE: 1.0, "b": 2.0}) for n in (1, 2)]
    page = Page(render(replace(result(), training=RECORD | {"curve": curve})))
    assert not [tag for tag, _ in page.tags if tag == "script"]
    assert not [attrs for _, attrs in page.tags if "onload" in attrs]
