"""Static post-training quantization of a lifted graph."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compress.quantize import fx_backend
from compress.quantize.activations import Activations
from compress.quantize.adaround import round_adaptively_
from compress.quantize.bias_correction import correct_biases_
from compress.quantize.channels import LAYERS
from compress.quantize.drafting import Quantized, draft
from compress.quantize.engines import engine_for
from compress.quantize.fx_recipe import StaticRecipe, find_weight_scales
from compress.quantize.graph_rules import drop_idle_clips
from compress.quantize.layers import measure_layers
from compress.quantize.stepping import called_once, keep_first
from compress.spec import Backend, PtqConfig

_KEPT_SAMPLES = 64


def quantize_static(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    calibration: Iterable[Sequence[Any]] | Activations | None,
    config: PtqConfig,
    *,
    full_range: bool | None = None,
    backend: Backend = "x86",
    islands: Mapping[str, str] | None = None,
    probes: Iterable[Sequence[Any]] = (),
    on_convert: Callable[[], None] = lambda: None,
    seed: int = 0,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Quantized:
    """Quantize weights and activations to int8 with scales from calibration.

    Args:
        graph_module: The float graph; left as it is.
        example_inputs: One small batch.
        calibration: Batches of inputs, read once; the caller counts progress as they are drawn.
            What is known of activations from plans before, where nothing looks at samples again.
            None for a trial on the example alone, whose ranges are of no use.
        config: Observer, granularity, overrides.
        full_range: Whether the processor's int8 kernels do not saturate; see StaticRecipe. None
            says so of every backend but `x86`.
        backend: What processors the graph is packed for.
        islands: Name to the reason why a module stays TorchScript.
        probes: Few, small batches on which each layer's error is measured.
        on_convert: Called when calibration is over.
        seed: Seeds what adaptive rounding draws.
        on_round: Is told after each layer how many have been rounded, of how many.

    Raises:
        NothingToCompress: No layer could be quantized.
        InvalidSpec: An override that matches no layer.
    """
    if full_range is None:
        full_range = backend != "x86"
    with engine_for(backend):
        return _quantize(
            graph_module, example_inputs, calibration, config,
            full_range, backend, islands or {}, probes, on_convert, seed, on_round,
        )  # fmt: skip


def _quantize(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    calibration: Iterable[Sequence[Any]] | Activations | None,
    config: PtqConfig,
    full_range: bool,
    backend: Backend,
    islands: Mapping[str, str],
    probes: Iterable[Sequence[Any]],
    on_convert: Callable[[], None],
    seed: int,
    on_round: Callable[[int, int], None],
) -> Quantized:
    kept: list[Sequence[Any]] = []
    if calibration is not None and not isinstance(calibration, Activations):
        kept, calibration = keep_first(calibration, _samples_kept(config))
    made = draft(
        graph_module, example_inputs, config, full_range=full_range, backend=backend, kept=kept
    )
    model, recipe, converted = made.model, made.recipe, made.trial
    if config.adaround and kept:  # not for a trial: it takes minutes
        recipe = _round(model, kept, recipe, seed, on_round)
    sqnr_db: dict[str, float] = {}
    if calibration is not None:
        prepared = fx_backend.prepare(model, example_inputs, recipe)
        made.renew_islands(prepared)
        _observe(prepared, calibration)
        on_convert()
        reference = fx_backend.float_reference(prepared)
        converted = fx_backend.convert(prepared, recipe.backend)
        drop_idle_clips(converted)
        for measured in (reference, converted):
            made.renew_islands(measured)
        if config.bias_correction:
            correct_biases_(converted, reference, kept, backend)
            for measured in (reference, converted):
                made.renew_islands(measured)
        sqnr_db = measure_layers(reference, converted, made.layers, probes)
    return made.finish(converted, islands, sqnr_db)


def _observe(prepared: fx.GraphModule, calibration: Iterable[Sequence[Any]] | Activations) -> None:
    if isinstance(calibration, Activations):
        calibration.fill_(prepared)
        return
    with torch.no_grad():
        for batch in calibration:
            prepared(*batch)


def _round(
    model: fx.GraphModule,
    batches: Sequence[Sequence[Any]],
    recipe: StaticRecipe,
    seed: int,
    on_layer: Callable[[int, int], None],
) -> StaticRecipe:
    """Round weights adaptively, in place; the recipe returned holds the scales they are for."""
    names = [
        name
        for name in called_once(model)
        if name not in recipe.float_layers and type(model.get_submodule(name)) in LAYERS
    ]
    scales = find_weight_scales(model, recipe, names)
    limits = {name: recipe.weight_limits(name) for name in names}
    done = round_adaptively_(model, batches, scales, limits, seed=seed, on_layer=on_layer)
    return replace(recipe, weight_scales={name: scales[name] for name in done})


def _samples_kept(config: PtqConfig) -> int:
    """Samples that algorithms look at again and again, and that are held in memory for them."""
    looked_at = config.smoothquant or config.equalize or config.bias_correction or config.adaround
    return _KEPT_SAMPLES if looked_at else 0
