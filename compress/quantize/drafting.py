"""What static quantization does before and after scales are found, by whatever means."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import fx, nn

from compress.errors import NothingToCompress, UnsupportedOperator
from compress.quantize import fx_backend
from compress.quantize.equalize import equalize_
from compress.quantize.folding import fold_batch_norm
from compress.quantize.fx_layers import computes_wrongly, saturating_depthwise
from compress.quantize.fx_recipe import StaticRecipe
from compress.quantize.graph_rules import (
    Structure,
    activate_in_place,
    drop_idle_clips,
    flatten_output,
    has_bare_products,
    last_layers,
    make_quantizable,
    restore_output,
)
from compress.quantize.hiding import hide_between_floats, hide_like, reveal
from compress.quantize.islands import renew_islands
from compress.quantize.layers import Weighted, layer_table, nothing_done, weighted_layers
from compress.quantize.linears import linears_
from compress.quantize.narrowing import HALVES, store_half_
from compress.quantize.overrides import resolve_overrides
from compress.quantize.replacing import stored_table
from compress.quantize.smoothquant import smooth_
from compress.result import Layer
from compress.spec import Backend, LayerPrecision, PtqConfig


@dataclass(frozen=True)
class Quantized:
    """An int8 graph and the table of its layers."""

    graph_module: fx.GraphModule
    layers: list[Layer]


@dataclass(frozen=True)
class Draft:
    """A float graph that the quantizer can take, and what it is to do to it.

    Attributes:
        model: Has BatchNorms folded, islands and float parts hidden, and returns a plain tuple.
        source: The graph that it was made from.
        layers: Weighted layers of the source by name.
        overrides: Name to (pattern, precision) that the request set.
        norms: Name of each layer that a BatchNorm was folded into, to both as they were before.
        structure: What the source returns.
        recipe: How the model is quantized.
        trial: The model converted with the ranges of the example alone.
    """

    model: fx.GraphModule
    source: fx.GraphModule
    layers: Mapping[str, Weighted]
    overrides: Mapping[str, tuple[str, LayerPrecision]]
    norms: Mapping[str, tuple[nn.Module, nn.Module]]
    structure: Structure
    recipe: StaticRecipe
    trial: fx.GraphModule

    def renew_islands(self, graph_module: fx.GraphModule) -> None:
        """Give a graph on its way its islands afresh, hidden; see `islands.py`."""
        renew_islands(graph_module, self.source, hidden=True)

    def finish(
        self,
        converted: fx.GraphModule,
        islands: Mapping[str, str],
        sqnr_db: Mapping[str, float],
    ) -> Quantized:
        """Return the int8 graph as it is delivered; changes `converted`.

        Args:
            converted: The model, in int8.
            islands: Name to the reason why a module stays TorchScript.
            sqnr_db: Name to signal-to-quantization-noise ratio of the layer's output.

        Raises:
            NothingToCompress: No layer was quantized.
        """
        renew_islands(converted, self.source)
        reveal(converted)
        activate_in_place(converted)
        restore_output(converted, self.structure)
        table = layer_table(self.layers, converted, self.overrides, islands, sqnr_db)
        halved = _store_half(converted, self.layers, self.overrides, sqnr_db)
        table = [halved.get(layer.name, layer) for layer in table]
        if all(layer.precision == "fp32" for layer in table):
            raise NothingToCompress(_nothing(table, has_bare_products(self.model)))
        return Quantized(converted, table)


def draft(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    config: PtqConfig,
    *,
    full_range: bool,
    backend: Backend,
    kept: Sequence[Sequence[Any]] = (),
) -> Draft:
    """Make a float graph ready, and find by a trial what has to stay float.

    Args:
        graph_module: The float graph; left as it is.
        example_inputs: One small batch.
        config: Observer, granularity, overrides, and what is to be done to weights beforehand.
        full_range: Whether the processor's int8 kernels do not saturate; see StaticRecipe.
        backend: What processors the graph is packed for.
        kept: Batches that equalizing and smoothing look at.

    Raises:
        InvalidSpec: An override that matches no layer.
        UnsupportedOperator: The trial fails where nothing can be kept float.
    """
    model = copy.deepcopy(graph_module).float().eval()
    linears_(model)
    layers = weighted_layers(model)
    overrides = resolve_overrides(config.overrides, list(layers))
    renew_islands(model, graph_module, hidden=True)
    if config.smoothquant:
        smooth_(model, kept or [example_inputs], config.smoothquant_alpha)
    make_quantizable(model, backend, full_range=full_range)
    norms = fold_batch_norm(model)
    if config.equalize:
        equalize_(model, kept or [example_inputs])
    structure = flatten_output(model)
    unfit = {
        n
        for n, layer in layers.items()
        if isinstance(getattr(layer.module, "padding", None), str)
        or computes_wrongly(layer.module, backend)
    }
    kept_float = {n for n, (_, precision) in overrides.items() if precision != "int8"} | unfit
    hide_between_floats(model, kept_float)
    recipe = StaticRecipe(
        granularity=config.granularity,
        observer=config.observer,
        percentile=config.percentile,
        backend=backend,
        full_range=full_range,
        narrow_layers=frozenset(
            n for n, layer in layers.items() if saturating_depthwise(layer.module)
        )
        if backend != "arm"
        else frozenset(),
        last_layers=last_layers(model, layers),
        float_layers=frozenset(kept_float),
    )
    trial = _hide_what_fails(model, example_inputs, recipe)
    return Draft(model, graph_module, layers, overrides, norms, structure, recipe, trial)


def _store_half(
    converted: fx.GraphModule,
    layers: Mapping[str, Weighted],
    overrides: Mapping[str, tuple[str, LayerPrecision]],
    sqnr_db: Mapping[str, float],
) -> dict[str, Layer]:
    """Store in 16 bits what overrides say, in place, and return these layers' lines."""
    called = {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    chosen = {
        name: precision
        for name, (_, precision) in overrides.items()
        if precision in HALVES and name in called and not layers[name].is_island
    }
    reasons = store_half_(converted, chosen)
    table = stored_table({name: layers[name] for name in chosen}, converted, reasons, {}, sqnr_db)
    return {layer.name: layer for layer in table}


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
        converted = fx_backend.convert(prepared, recipe.backend)
        drop_idle_clips(converted)
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
    return nothing_done(table, "can become int8")
