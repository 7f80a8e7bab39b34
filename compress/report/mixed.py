"""How a mixed plan was found: the plans that were tried, as plots and as tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from compress.report.details import sections
from compress.report.plots import Plot
from compress.report.svg import INK, MUTED, SERIES, draw
from compress.result import Result

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_DB = 120.0
"""Where plans that change next to nothing are drawn."""


def mixed_plots(result: Result) -> list[Plot]:
    """Return size and latency of each plan tried against its accuracy; none for other methods."""
    trials = (result.mixed or {}).get("trials", [])
    if len(trials) < 2:
        return []
    return [
        _plans(trials, "size_bytes", 1e6, "megabytes on disk", "Plans: size and accuracy"),
        _plans(trials, "latency_ms", 1, "milliseconds, median", "Plans: speed and accuracy"),
    ]


def mixed_tables(result: Result) -> list[dict[str, Any]]:
    """Return bound, plan, trials and sensitivity as tables."""
    story = result.mixed
    if not story:
        return []
    told = dict(story)
    told["trials"] = [_trial_row(trial) for trial in story.get("trials", [])]
    told["sensitivity"] = [_sensitivity_row(row) for row in story.get("sensitivity", [])]
    return sections({name: value for name, value in told.items() if value})


def _plans(
    trials: Sequence[Mapping[str, Any]], key: str, unit: float, label: str, title: str
) -> Plot:
    by_quality = all(trial.get("quality") for trial in trials)

    def worth(trial: Mapping[str, Any]) -> float:
        if by_quality:
            return float(trial["quality"]["value"])
        return min(_MOST_DB, float(trial["sqnr_db"]))

    def paint(_: Figure, axes: Axes) -> None:
        for trial in trials:
            chosen = bool(trial.get("chosen"))
            keeps = bool(trial.get("keeps_bound"))
            axes.plot(
                [float(trial[key]) / unit], [worth(trial)], "D" if chosen else "o",
                markersize=9 if chosen else 7, color=SERIES[0] if keeps else MUTED,
                markeredgecolor=INK if chosen else "none",
            )  # fmt: skip
        axes.set_xlim(0, 1.12 * max(float(trial[key]) for trial in trials) / unit)
        axes.set_xlabel(label)
        axes.set_ylabel(trials[0]["quality"]["metric"] if by_quality else "SQNR, dB")
        if by_quality and trials[0]["quality"]["metric"] in ("mse", "mae"):
            axes.invert_yaxis()

    svg = draw(f"plans{'size' if unit > 1 else 'latency'}", title, 2.7, paint)
    return Plot(svg, title, "Each point is a plan that was written and run; grey ones break the "
                "bound, the diamond was chosen.")  # fmt: skip


def _trial_row(trial: Mapping[str, Any]) -> dict[str, Any]:
    quality = trial.get("quality") or {}
    counts = ", ".join(f"{count} {name}" for name, count in trial.get("layers", {}).items())
    row = {
        "layers": counts,
        "size_bytes": trial.get("size_bytes"),
        "p50 ms": trial.get("latency_ms"),
        "SQNR dB": trial.get("sqnr_db"),
    }
    if quality:
        row |= {quality["metric"]: quality["value"], "drop": quality["drop"]}
    return row | {"keeps bound": trial.get("keeps_bound"), "chosen": trial.get("chosen")}


def _sensitivity_row(row: Mapping[str, Any]) -> dict[str, Any]:
    before, after = row["size_bytes"]
    return {
        "layer": row["name"],
        "type": row["type"],
        "precision": row["precision"],
        "SQNR dB of the outputs": row["sqnr_db"],
        "before_bytes": before,
        "after_bytes": after,
    }
