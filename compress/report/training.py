"""How a model was trained: its curve, and what training won."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from compress.report.details import sections
from compress.report.formats import quality_text, significant
from compress.report.plots import Plot
from compress.report.svg import MUTED, SERIES, draw, label_text
from compress.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = Mapping[str, Any]

_WON = {
    "teacher": "Teacher",
    "student_before": "Student before training",
    "student_after": "Student after training",
}


def training_plots(result: Result) -> list[Plot]:
    """Return loss and accuracy by epoch, where there are two points of them at least."""
    record = result.training or {}
    curve: Sequence[Point] = record.get("curve") or []
    plots = [_losses(curve), _accuracies(curve, record.get("teacher"))]
    return [plot for plot in plots if plot is not None]


def training_tables(result: Result) -> list[dict[str, Any]]:
    """Return what training won, what it took, and the curve, as tables."""
    record = {name: value for name, value in (result.training or {}).items() if value is not None}
    won = [_won_row(label, record.pop(name)) for name, label in _WON.items() if name in record]
    curve: Sequence[Point] = record.pop("curve", [])
    pruned = dict(record.pop("pruned", {}))
    told: dict[str, Any] = {name: value for name, value in record.items() if name != "curve_url"}
    if "final" in told:
        told["final"] = _curve_row(told["final"])
    if pruned:
        layers = pruned.pop("layers", [])
        told |= {"pruned": pruned, "channels": [_pruned_row(layer) for layer in layers]}
    if won:
        told["what training won"] = won
    if curve:
        told["curve"] = [_curve_row(point) for point in curve]
    return sections(told)


def _losses(curve: Sequence[Point]) -> Plot | None:
    parts: list[Point] = [point.get("parts") or {} for point in curve]
    names = list(dict.fromkeys(name for part in parts for name in part))
    lines = {"loss": _series(curve, curve, "loss")}
    if len(names) > 1:
        lines |= {name: _series(curve, parts, name) for name in names[: len(SERIES) - 1]}
    if len(lines["loss"]) < 2:
        return None

    def paint(_: Figure, axes: Axes) -> None:
        for (name, points), color in zip(lines.items(), SERIES, strict=False):
            _draw(axes, name, points, color, 2 if name == "loss" else 1)
        _finish(axes, "loss")

    svg = draw("losses", "Loss by epoch", 2.7 + 0.1 * len(lines), paint)
    return Plot(svg, "Loss by epoch", "Of the training samples, and what it is the sum of.")


def _accuracies(curve: Sequence[Point], teacher: Point | None) -> Plot | None:
    points = _series(curve, curve, "accuracy")
    if len(points) < 2:
        return None

    def paint(_: Figure, axes: Axes) -> None:
        _draw(axes, "held-out samples", points, SERIES[0], 2)
        if teacher and teacher.get("metric") == "top1":
            axes.axhline(
                float(teacher["value"]), color=MUTED, linewidth=1, linestyle="--",
                label="teacher, evaluation data",
            )  # fmt: skip
        axes.ticklabel_format(axis="y", useOffset=False)
        _finish(axes, "accuracy")

    svg = draw("accuracies", "Accuracy by epoch", 2.9, paint)
    return Plot(
        svg, "Accuracy by epoch", "Of training samples that were held out, not of the evaluation."
    )


def _series(
    curve: Sequence[Point], values: Sequence[Point], name: str
) -> list[tuple[float, float]]:
    """Return (epoch, value) where there is a value; counted on where a new phase begins at 1."""
    epochs = [float(point.get("epoch") or 0) for point in curve]
    if any(after <= before for before, after in pairwise(epochs)):
        epochs = [float(index + 1) for index in range(len(curve))]
    found = zip(epochs, (each.get(name) for each in values), strict=True)
    return [(epoch, float(value)) for epoch, value in found if value is not None]


def _draw(
    axes: Axes, name: str, points: Sequence[tuple[float, float]], color: str, width: float
) -> None:
    axes.plot(
        [epoch for epoch, _ in points], [value for _, value in points], linewidth=width,
        marker="o" if len(points) <= 30 else "", markersize=3, color=color, label=label_text(name),
    )  # fmt: skip


def _finish(axes: Axes, label: str) -> None:
    axes.locator_params(axis="x", integer=True)
    axes.set_xlabel("epoch")
    axes.set_ylabel(label)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)


def _won_row(label: str, quality: Point) -> dict[str, Any]:
    return {
        "": label,
        quality["metric"]: quality_text(quality["metric"], quality["value"]),
        "samples": quality.get("samples"),
    }


def _curve_row(point: Point) -> dict[str, Any]:
    row = {name: value for name, value in point.items() if name != "parts" and value is not None}
    if (rate := row.pop("images_per_s", None)) is not None:
        row["samples per second"] = significant(rate)
    if (rate := row.pop("learning_rate", None)) is not None:
        row["learning rate"] = f"{rate:.3g}"
    return row | dict(point.get("parts") or {})


def _pruned_row(layer: Mapping[str, Any]) -> dict[str, Any]:
    before, after = layer["channels"]
    return {
        "layer": layer["name"], "type": layer["type"], "before": before, "after": after,
        "why no fewer": layer["reason"] or "",
    }  # fmt: skip
