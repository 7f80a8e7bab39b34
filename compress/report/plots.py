"""The plots of a report, each where there is something to show."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from compress.report.formats import milliseconds, shorten
from compress.report.svg import GRID, INK, MUTED, SERIES, draw, label_text
from compress.result import ArtifactReport, Layer, Result, Throughput

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAMED_LAYERS = 24
"""So many layers get a bar with their name; of more, only the extreme ones."""
_EXTREMES = 12
_NAME_LENGTH = 26
_EXACT_DB = 200.0
_SQNR_SHOWN_DB = 80.0
"""Bars end there: what is better is as good as exact."""
_ROW_IN = 0.21
_ORIGINAL = "original"


@dataclass(frozen=True)
class Plot:
    """One SVG with what it shows and how to read it."""

    svg: Markup
    title: str
    note: str


def draw_plots(result: Result) -> dict[str, list[Plot]]:
    """Return the plots of each part of the report: `files` and `layers`."""
    files = [_latencies(result), _pareto(result, "latency"), _pareto(result, "size"),
             _throughput(result)]  # fmt: skip
    measured = [layer for layer in result.layers if layer.sqnr_db is not None]
    layers = [_layer_bytes(result.layers), _layer_noise(measured)]
    if len(measured) > _NAMED_LAYERS:
        layers.append(_worst(measured))
    if len(result.layers) > _NAMED_LAYERS:
        layers.append(_largest(result.layers))
    return {
        "files": [plot for plot in files if plot is not None],
        "layers": [plot for plot in layers if plot is not None],
    }


def _labels(result: Result) -> list[str]:
    return [f"{a.precision} {a.format}" for a in result.artifacts]


def _latencies(result: Result) -> Plot | None:
    shown: list[tuple[str, Any]] = [(_ORIGINAL, result.baseline.latency_ms)]
    shown += list(zip(_labels(result), [a.latency_ms for a in result.artifacts], strict=True))
    rows = [(name, latency) for name, latency in shown if latency is not None]
    if not rows:
        return None

    def paint(_: Figure, axes: Axes) -> None:
        for index, (name, latency) in enumerate(rows):
            color = MUTED if name == _ORIGINAL else SERIES[(index - 1) % len(SERIES)]
            axes.barh(index, latency.p50, height=0.55, color=color)
            axes.plot([latency.p50, latency.p90], [index, index], color=INK, linewidth=1)
            axes.plot([latency.p90], [index], marker="|", markersize=8, color=INK)
            axes.annotate(milliseconds(latency.p50), (latency.p90, index), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=9)  # fmt: skip
        _name_rows(axes, [name for name, _ in rows])
        axes.set_xlim(0, 1.28 * max(latency.p90 for _, latency in rows))
        axes.set_xlabel("milliseconds for one sample")
        axes.grid(visible=False, axis="y")

    svg = draw("latency", "Latency of each file", 0.75 + 0.42 * len(rows), paint)
    return Plot(svg, "Latency at batch 1", "Bars end at the median, lines at the 90th percentile.")


def _pareto(result: Result, against: str) -> Plot | None:
    baseline = result.baseline
    metric = _telling_metric(result)
    points: list[tuple[str, float, float, str]] = []

    def cost(file: Any) -> float | None:
        if against == "size":
            return float(file.size_bytes) / 1e6
        return None if file.latency_ms is None else float(file.latency_ms.p50)

    def worth(artifact: ArtifactReport) -> float | None:
        if metric is not None:
            return None if artifact.quality is None else artifact.quality.value
        sqnr_db = artifact.fidelity.sqnr_db if artifact.fidelity is not None else None
        return None if sqnr_db is None or abs(sqnr_db) >= _EXACT_DB else sqnr_db

    origin = cost(baseline)
    if origin is not None and baseline.quality is not None and metric is not None:
        points.append((_ORIGINAL, origin, baseline.quality.value, MUTED))
    for index, (label, artifact) in enumerate(zip(_labels(result), result.artifacts, strict=True)):
        x, y = cost(artifact), worth(artifact)
        if x is not None and y is not None:
            points.append((label, x, y, SERIES[index % len(SERIES)]))
    if not any(label != _ORIGINAL for label, *_ in points):
        return None
    errors = metric in ("mse", "mae")

    def paint(_: Figure, axes: Axes) -> None:
        for label, x, y, color in points:
            marker = "o" if color == MUTED else "sD^vP*"[SERIES.index(color)]
            axes.plot([x], [y], marker, markersize=8, color=color, label=label_text(label))
        if metric is None and origin is not None:
            axes.axvline(origin, color=MUTED, linewidth=1, linestyle="--", label=_ORIGINAL)
        axes.set_xlim(0, 1.12 * max([x for _, x, _, _ in points] + [origin or 0.0]))
        axes.set_xlabel("megabytes on disk" if against == "size" else "milliseconds, median")
        axes.set_ylabel(metric or "SQNR, dB")
        values = [y for _, _, y, _ in points]
        slack = max(max(values) - min(values), 0.005 * max(map(abs, values)), 1e-9)
        axes.set_ylim(min(values) - 0.6 * slack, max(values) + 0.6 * slack)
        axes.ticklabel_format(axis="y", useOffset=False)
        if errors:
            axes.invert_yaxis()
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)

    names = {"size": "Size and quality", "latency": "Speed and quality"}
    svg = draw(f"pareto{against}", names[against], 2.7 + 0.1 * len(points), paint)
    return Plot(svg, names[against], "Better is up and to the left.")


def _telling_metric(result: Result) -> str | None:
    """Return the quality metric, or None where all files have the same and SQNR tells more."""
    qualities = [result.baseline.quality, *(artifact.quality for artifact in result.artifacts)]
    values = {quality.value for quality in qualities if quality is not None}
    return result.baseline.quality.metric if result.baseline.quality and len(values) > 1 else None


def _throughput(result: Result) -> Plot | None:
    named: list[tuple[str, list[Throughput]]] = [(_ORIGINAL, result.baseline.throughput)]
    named += list(zip(_labels(result), [a.throughput for a in result.artifacts], strict=True))
    if max(len(measured) for _, measured in named) < 2:
        return None
    sizes = sorted({each.batch_size for _, measured in named for each in measured})

    def paint(_: Figure, axes: Axes) -> None:
        for index, (label, measured) in enumerate(named):
            color = MUTED if label == _ORIGINAL else SERIES[(index - 1) % len(SERIES)]
            axes.plot(
                [sizes.index(each.batch_size) for each in measured],
                [each.samples_per_s for each in measured],
                marker="o", markersize=4, linewidth=2, color=color, label=label_text(label),
            )  # fmt: skip
        axes.set_xticks(range(len(sizes)), [str(size) for size in sizes])
        axes.set_ylim(bottom=0)
        axes.set_xlabel("samples in a call")
        axes.set_ylabel("samples per second")
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, fontsize=9)

    svg = draw("throughput", "Throughput by batch size", 2.7 + 0.1 * len(named), paint)
    return Plot(svg, "Throughput by batch size", "Median of calls, on the same threads.")


def _layer_bytes(layers: Sequence[Layer]) -> Plot | None:
    if not layers:
        return None
    note = "Weights before (grey) and after, in the order of their first call."
    before = [layer.size_bytes[0] / 1e6 for layer in layers]
    after = [layer.size_bytes[1] / 1e6 for layer in layers]

    def paint(_: Figure, axes: Axes) -> None:
        if len(layers) <= _NAMED_LAYERS:
            rows = range(len(layers))
            axes.barh(rows, before, height=0.8, color=GRID)
            axes.barh(rows, after, height=0.45, color=SERIES[0])
            _name_rows(axes, [layer.name for layer in layers])
            axes.set_xlabel("megabytes")
            axes.grid(visible=False, axis="y")
            return
        axes.stairs(before, color=MUTED, fill=True, alpha=0.35, linewidth=0)
        axes.stairs(after, color=SERIES[0], fill=True, linewidth=0)
        axes.set_ylabel("megabytes")
        axes.set_xlabel(f"layer, 1 to {len(layers)}")

    svg = draw("bytes", "Bytes of each layer", _height(layers), paint)
    return Plot(svg, "Bytes by layer", note)


def _layer_noise(layers: Sequence[Layer]) -> Plot | None:
    if not layers:
        return None
    shown = [_clipped(layer) for layer in layers]

    def paint(_: Figure, axes: Axes) -> None:
        if len(layers) <= _NAMED_LAYERS:
            _bars(axes, layers)
            return
        axes.stairs(shown, color=SERIES[1], fill=True, linewidth=0)
        axes.set_ylabel("SQNR, dB")
        axes.set_xlabel(f"layer, 1 to {len(layers)} of those measured")
        axes.set_ylim(bottom=min(0.0, *shown))

    svg = draw("noise", "Signal to quantization noise of each layer", _height(layers), paint)
    note = "Of each layer's output, with the errors of all layers before it; more is better."
    if max(layer.sqnr_db or 0.0 for layer in layers) > _SQNR_SHOWN_DB:
        note += f" Bars end at {_SQNR_SHOWN_DB:.0f} dB."
    return Plot(svg, "SQNR by layer", note)


def _worst(layers: Sequence[Layer]) -> Plot:
    worst = sorted(layers, key=_clipped)[:_EXTREMES]
    svg = draw("worst", "Layers of lowest SQNR", _height(worst), lambda _, axes: _bars(axes, worst))
    return Plot(svg, f"The {len(worst)} layers of lowest SQNR", "Candidates to keep in float.")


def _largest(layers: Sequence[Layer]) -> Plot:
    largest = sorted(layers, key=lambda layer: -layer.size_bytes[0])[:_EXTREMES]

    def paint(_: Figure, axes: Axes) -> None:
        rows = range(len(largest))
        axes.barh(rows, [layer.size_bytes[0] / 1e6 for layer in largest], height=0.8, color=GRID)
        axes.barh(
            rows, [layer.size_bytes[1] / 1e6 for layer in largest], height=0.45, color=SERIES[0]
        )
        _name_rows(axes, [layer.name for layer in largest])
        axes.set_xlabel("megabytes")
        axes.grid(visible=False, axis="y")

    svg = draw("largest", "Largest layers", _height(largest), paint)
    return Plot(svg, f"The {len(largest)} largest layers", "Before (grey) and after.")


def _bars(axes: Axes, layers: Sequence[Layer]) -> None:
    shown = [_clipped(layer) for layer in layers]
    axes.barh(range(len(layers)), shown, height=0.6, color=SERIES[1])
    _name_rows(axes, [layer.name for layer in layers])
    axes.set_xlim(left=min(0.0, *shown))
    axes.set_xlabel("SQNR, dB")
    axes.grid(visible=False, axis="y")


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    texts = [label_text(shorten(name, _NAME_LENGTH)) for name in _without_shared(names)]
    axes.set_yticks(range(len(texts)), texts)
    axes.set_ylim(len(texts) - 0.4, -0.6)


def _without_shared(names: Sequence[str]) -> list[str]:
    """Return names without the leading parts that all share, where any is too long to be shown."""
    if max(map(len, names)) <= _NAME_LENGTH or len(names) < 2:
        return list(names)
    parts = [name.split(".") for name in names]
    shared = 0
    while len({tuple(each[: shared + 1]) for each in parts}) == 1 and all(
        len(each) > shared + 1 for each in parts
    ):
        shared += 1
    return [".".join(each[shared:]) for each in parts]


def _clipped(layer: Layer) -> float:
    return max(-20.0, min(_SQNR_SHOWN_DB, layer.sqnr_db or 0.0))


def _height(layers: Sequence[Layer]) -> float:
    return 0.6 + _ROW_IN * len(layers) if len(layers) <= _NAMED_LAYERS else 2.6
