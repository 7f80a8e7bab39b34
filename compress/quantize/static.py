"""Static post-training quantization of a lifted graph."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx

from compress.errors import NothingToCompress, UnsupportedOperator
from compress.quantize import fx_backend
from compress.quantize.fx_backend import StaticRecipe
from compress.quantize.graph_rules import (
    flatten_output,
    has_bare_products,
    last_layers,
    make_quantizable,
    restore_output,
)
from compress.quantize.hiding import hide_like, reveal
from compress.quantize.islands import renew_islands
from compress.quantize.layers import layer_table, measure_layers, weighted_layers
from compress.quantize.overrides import resolve_overrides
from compress.result import Layer
from compress.spec import PtqConfig


@dataclass(frozen=True)
class Quantized:
    """An int8 graph and the table of its layers."""

    graph_module: fx.GraphModule
    layers: list[Layer]


def quantize_static(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    calibration: Iterable[Sequence[Any]] | None,
    config: PtqConfig,
    *,
    full_range: bool,
    islands: Mapping[str, str] | None = None,
    probes: Iterable[Sequence[Any]] = (),
    on_convert: Callable[[], None] = lambda: None,
) -> Quantized:
    """Quantize weights and activations to int8 with scales from calibration.

    Args:
        graph_module: The float graph; left as it is.
        example_inputs: One small batch.
        calibration: Batches of inputs, read once; the caller counts progress as they are drawn.
            None for a trial on the example alone, whose ranges are of no use.
        config: Observer, granularity, overrides.
        full_range: Whether the processor's int8 kernels do not saturate; see StaticRecipe.
        islands: Name to the reason why a module stays TorchScript.
        probes: Few, small batches on which each layer's error is measured.
        on_convert: Called when calibration is over.

    Raises:
        NothingToCompress: No layer could be quantized.
        InvalidSpec: An override that matches no layer.
    """
    model = copy.deepcopy(graph_module).float().eval()
    layers = weighted_layers(model)
    overrides = resolve_overrides(config.overrides, list(layers))
    renew_islands(model, graph_module, hidden=True)
    make_quantizable(model)
    structure = flatten_output(model)
    unfit = {
        n
        for n, layer in layers.items()
        if isinstance(getattr(layer.module, "padding", None), str)
        or fx_backend.computes_wrongly(layer.module)
    }
    recipe = StaticRecipe(
        granularity=config.granularity,
        observer=config.observer,
        full_range=full_range,
        narrow_layers=frozenset(
            n for n, layer in layers.items() if fx_backend.saturating_depthwise(layer.module)
        ),
        last_layers=last_layers(model, layers),
        float_layers=frozenset(
            {n for n, (_, precision) in overrides.items() if precision == "fp32"} | unfit
        ),
    )
    converted = _hide_what_fails(model, example_inputs, recipe)
    sqnr_db: dict[str, float] = {}
    if calibration is not None:
        prepared = fx_backend.prepare(model, example_inputs, recipe)
        renew_islands(prepared, graph_module, hidden=True)
        with torch.no_grad():
            for batch in calibration:
                prepared(*batch)
        on_convert()
        reference = fx_backend.float_reference(prepared)
        converted = fx_backend.convert(prepared)
        for measured in (reference, converted):
            renew_islands(measured, graph_module, hidden=True)
        sqnr_db = measure_layers(reference, converted, layers, probes)
    renew_islands(converted, graph_module)
    reveal(converted)
    restore_output(converted, structure)
    table = layer_table(layers, converted, overrides, islands or {}, sqnr_db)
    if not any(layer.precision == "int8" for layer in table):
        raise NothingToCompress(_nothing(table, has_bare_products(model)))
    return Quantized(converted, table)


def _hide_what_fails(
    model: fx.GraphModule, example_inputs: Sequence[Any], recipe: StaticRecipe
) -> fx.GraphModule:
    """Try the conversion on the example alone; keep float what torch has no int8 kernel for.

    Returns:
        The graph converted with the example's ranges.

    Raises:
        UnsupportedOperator: It fails where nothing can be kept float.
    """
    recipe = replace(recipe, observer="minmax")  # the ranges do not matter
    while True:
        prepared = fx_backend.prepare(copy.deepcopy(model), example_inputs, recipe)
        with torch.no_grad():
            prepared(*example_inputs)
        converted = fx_backend.convert(prepared)
        failing = _first_failure(converted, example_inputs)
        if failing is None:
            return converted
        node, error = failing
        if not hide_like(model, node):
            operator = re.search(r"((?:aten|quantized)::\w+)", str(error))
            raise UnsupportedOperator(
                f"Quantization led int8 values to {operator[1] if operator else node.name}, which "
                "does not take them so; keep the layers before it fp32 with `overrides`, or "
                "convert to fp16."
            ) from error


def _first_failure(
    converted: fx.GraphModule, example_inputs: Sequence[Any]
) -> tuple[fx.Node, Exception] | None:
    """Return the node that raises on the example, if one does."""
    failed: list[tuple[fx.Node, Exception]] = []

    class Runner(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            try:
                return super().run_node(n)
            except Exception as error:
                failed.append((n, error))
                raise

    runner = Runner(converted)
    runner.extra_traceback = False
    try:
        with torch.no_grad():
            runner.run(*example_inputs)
    except Exception:
        if not failed:
            raise
    return failed[0] if failed else None


def _nothing(table: Sequence[Layer], bare: bool) -> str:
    if not table and bare:
        return (
            "The model's weights belong to no layer: it was frozen, or is a single layer saved by "
            "itself. Save it without torch.jit.freeze, or inside another module."
        )
    if not table:
        return "The model has no layer with weights, so there is nothing to quantize."
    reasons = "; ".join(f"{layer.name}: {layer.reason}" for layer in table[:5])
    return f"None of the model's {len(table)} weighted layers can become int8 ({reasons})."
