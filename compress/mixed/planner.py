"""Finds the cheapest plan that keeps a bound: what may be chosen, what it costs, what fits.

Nothing is believed that can be tried: each plan that the search looks at is converted, written and
run, and its figures are those of the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from compress.errors import ConstraintUnmet, NothingToCompress
from compress.measure.fidelity import noise_fraction
from compress.measure.quality import within_budget
from compress.mixed.search import Choice, Plan, order_moves, plan_after, search
from compress.mixed.sensitivity import Sensitivity, measure_sensitivity
from compress.quantize import Quantized
from compress.quantize.layers import nothing_done
from compress.result import Fidelity, Layer, Quality
from compress.spec import LayerPrecision, MixedConfig

_TIMED_RUNS = 5
_TIMED_S = 0.3
"""What layers are timed for, where a model is so quick that few runs say little."""


@dataclass(frozen=True)
class Figures:
    """A file's own: size, closeness to the original, quality, median latency at batch 1."""

    size_bytes: int
    fidelity: Fidelity
    quality: Quality | None
    baseline: Quality | None
    latency_ms: float


@dataclass(frozen=True)
class Found:
    """The plan, the model made by it, and how it was found, as plain JSON types."""

    plan: Plan
    quantized: Quantized
    story: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Bound:
    """What a plan must keep; exactly one is set."""

    max_accuracy_drop: float | None = None
    min_sqnr_db: float | None = None
    target_size_bytes: int | None = None

    @classmethod
    def of(cls, config: MixedConfig, default_drop: float) -> Bound:
        """Return the bound of a job; without one of its own, its accuracy budget is it."""
        if config.min_sqnr_db is None and config.target_size_bytes is None:
            drop = config.max_accuracy_drop
            return cls(max_accuracy_drop=default_drop if drop is None else drop)
        return cls(min_sqnr_db=config.min_sqnr_db, target_size_bytes=config.target_size_bytes)

    def holds(self, figures: Figures) -> bool:
        """Whether a file keeps it. Without a quality metric, the drop is that of `recommended`."""
        if self.target_size_bytes is not None:
            return figures.size_bytes <= self.target_size_bytes
        if self.min_sqnr_db is not None:
            return figures.fidelity.sqnr_db >= self.min_sqnr_db
        assert self.max_accuracy_drop is not None
        if figures.quality is None or figures.baseline is None:
            return noise_fraction(figures.fidelity) <= self.max_accuracy_drop
        return within_budget(figures.quality, figures.baseline, self.max_accuracy_drop)

    def text(self) -> str:
        """Return it as `max_accuracy_drop 0.01`."""
        name, value = next((k, v) for k, v in vars(self).items() if v is not None)
        return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"


def find_plan(
    graph_module: fx.GraphModule,
    bound: Bound,
    candidates: Sequence[LayerPrecision],
    pinned: Plan,
    probes: Sequence[Any],
    *,
    build: Callable[[Plan], Quantized],
    measure: Callable[[Quantized], Figures],
    static: Callable[[str], bool],
    per_channel: bool = True,
    on_step: Callable[[float, str], None] = lambda fraction, message: None,
) -> Found:
    """Search for the cheapest plan within the bound, or the most exact one within a size.

    Args:
        graph_module: Float, BatchNorm folded; its layers bear the names that `build` knows.
        bound: What the finished file must keep.
        candidates: Precisions to choose from.
        pinned: Layers that are not up for search, with their precision.
        probes: One batch of samples for the sensitivity of layers.
        build: Makes the model of a plan; layers that it does not name stay fp32.
        measure: Writes and runs it.
        static: Whether a layer's int8 kernel also gives int8.
        per_channel: Whether int8 weights have a scale for each output channel.
        on_step: Receives the fraction of the search that is done, and words for it.

    Raises:
        NothingToCompress: No layer takes any of the candidates but fp32.
        ConstraintUnmet: No plan keeps the bound.
    """
    on_step(0.0, "seeing which layers take which precision")
    options = _options(graph_module, candidates, pinned, build, probes)
    free = {name: [p for p in taken if p != "fp32"] for name, taken in options.precisions.items()}
    if not any(free.values()) and all(taken == "fp32" for taken in pinned.values()):
        raise NothingToCompress(nothing_done(options.layers, "takes one of the candidates"))
    sensitivity = measure_sensitivity(
        graph_module,
        free,
        probes,
        static=[name for name in free if static(name)],
        per_channel=per_channel,
        on_layer=lambda done, total: on_step(
            0.1 + 0.4 * done / total, f"sensitivity of layer {done}/{total}"
        ),
    )
    by_size = bound.target_size_bytes is not None
    cheapest, moves = order_moves(options.choices(sensitivity, by_size=by_size))
    trials: dict[int, tuple[Quantized, Figures]] = {}

    def attempt(steps: int) -> bool:
        on_step(0.5 + 0.5 * len(trials) / (3 + len(moves).bit_length()), "trying a plan")
        made = build({**plan_after(cheapest, moves, steps), **pinned})
        trials[steps] = (made, measure(made))
        return bound.holds(trials[steps][1])

    found = search(len(moves), attempt, seek_most=by_size)
    table = [
        _trial(steps, plan_after(cheapest, moves, steps), figures, bound)
        for steps, (_, figures) in sorted(trials.items())
    ]
    if found is None:
        raise _unmet(bound, table)
    plan = {**plan_after(cheapest, moves, found), **pinned}
    for trial in table:
        trial["chosen"] = trial["steps"] == found
    story = {
        "bound": {name: value for name, value in vars(bound).items() if value is not None},
        "plan": plan,
        "trials": table,
        "sensitivity": [options.row(each) for each in sensitivity],
    }
    return Found(plan, trials[found][0], story)


@dataclass(frozen=True)
class _Options:
    """Which layer takes which precision, and at what bytes and microseconds."""

    precisions: Mapping[str, Sequence[LayerPrecision]]
    layers: Sequence[Layer]
    size_bytes: Mapping[tuple[str, str], int]
    time_us: Mapping[tuple[str, str], float]

    def choices(
        self, sensitivity: Sequence[Sensitivity], *, by_size: bool
    ) -> dict[str, list[Choice]]:
        """Cost is the share of the model's bytes, plus, but for a bound on size, of its time."""
        noise = {(each.name, each.precision): each.noise for each in sensitivity}
        all_bytes = max(1, sum(self.size_bytes[name, "fp32"] for name in self.precisions))
        all_us = sum(self.time_us.get((name, "fp32"), 0.0) for name in self.precisions) or 1.0

        def cost(name: str, precision: str) -> float:
            share = self.size_bytes[name, precision] / all_bytes
            if by_size:
                return share
            float_us = self.time_us.get((name, "fp32"), 0.0)
            return share + self.time_us.get((name, precision), float_us) / all_us

        return {
            name: [Choice(p, cost(name, p), noise.get((name, p), 0.0)) for p in taken]
            for name, taken in self.precisions.items()
        }

    def row(self, each: Sensitivity) -> dict[str, Any]:
        """Return one line of the sensitivity table."""
        key = (each.name, each.precision)
        return {
            "name": each.name,
            "type": next(layer.type for layer in self.layers if layer.name == each.name),
            "precision": each.precision,
            "sqnr_db": each.sqnr_db,
            "size_bytes": [self.size_bytes[each.name, "fp32"], self.size_bytes[key]],
            "time_us": [self.time_us.get((each.name, "fp32")), self.time_us.get(key)],
        }


def _options(
    graph_module: fx.GraphModule,
    candidates: Sequence[LayerPrecision],
    pinned: Plan,
    build: Callable[[Plan], Quantized],
    probes: Sequence[Any],
) -> _Options:
    plain = build({})
    table = plain.layers
    names = [layer.name for layer in plain.layers if layer.name not in pinned]
    precisions: dict[str, list[LayerPrecision]] = {name: [] for name in names}
    sizes = {(layer.name, "fp32"): layer.size_bytes[0] for layer in plain.layers}
    times = {(name, "fp32"): us for name, us in _times(graph_module, names, probes).items()}
    for precision in candidates:
        if precision == "fp32":
            continue
        made = build({name: precision for name in names})
        table = made.layers  # with the reasons of those that cannot
        for layer in made.layers:
            if layer.precision == precision and layer.name in precisions:
                precisions[layer.name].append(precision)
                sizes[layer.name, precision] = layer.size_bytes[1]
        for name, us in _times(made.graph_module, names, probes).items():
            times[name, precision] = us
    for taken in precisions.values():
        if "fp32" in candidates or not taken:
            taken.append("fp32")
    return _Options(precisions, table, sizes, times)


def _times(
    graph_module: fx.GraphModule, names: Sequence[str], probes: Sequence[Any]
) -> dict[str, float]:
    """Return the microseconds of each layer that the graph calls as a module: the best of some."""
    wanted = set(names)
    best: dict[str, float] = {}

    class Timer(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            if n.op != "call_module" or n.target not in wanted:
                return super().run_node(n)
            began = time.perf_counter()
            value = super().run_node(n)
            took[str(n.target)] = took.get(str(n.target), 0.0) + time.perf_counter() - began
            return value

    runs, end = 0, time.perf_counter() + _TIMED_S
    while runs < _TIMED_RUNS or time.perf_counter() < end:
        runs += 1
        took: dict[str, float] = {}
        with torch.no_grad():
            Timer(graph_module).run(*probes)
        for name, seconds in took.items():
            best[name] = min(best.get(name, seconds * 1e6), seconds * 1e6)
    return best


def _trial(steps: int, plan: Plan, figures: Figures, bound: Bound) -> dict[str, Any]:
    counts: dict[str, int] = {}
    for precision in plan.values():
        counts[precision] = counts.get(precision, 0) + 1
    quality = figures.quality
    return {
        "steps": steps,
        "layers": counts,
        "size_bytes": figures.size_bytes,
        "latency_ms": figures.latency_ms,
        "sqnr_db": figures.fidelity.sqnr_db,
        "quality": None if quality is None else vars(quality),
        "keeps_bound": bound.holds(figures),
    }


def _unmet(bound: Bound, table: Sequence[dict[str, Any]]) -> ConstraintUnmet:
    best = (
        min(table, key=lambda trial: trial["size_bytes"])
        if bound.target_size_bytes is not None
        else max(table, key=lambda trial: trial["sqnr_db"])
    )
    figures = f"{best['size_bytes']} bytes, {best['sqnr_db']:.1f} dB SQNR"
    if best["quality"] is not None:
        quality = best["quality"]
        figures += f", {quality['metric']} {quality['value']:.4f} (drop {quality['drop']:+.4f})"
    return ConstraintUnmet(
        f"No plan of these candidates keeps {bound.text()}; the nearest has {figures}. Loosen the "
        "bound, or allow more candidates.",
        {"bound": {n: v for n, v in vars(bound).items() if v is not None}, "best": best},
    )
