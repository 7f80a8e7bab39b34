"""Full and half precision of a lifted graph: no scales, no calibration.

Half precision stores weights in 16 bits, float16 or bfloat16, and computes in 32: without
AVX512-FP16 or AVX512-BF16 the x86 kernels for 16 bits are far slower than those for float
(ResNet-18: 1126 ms against 29), while widening the weights on each call costs a tenth. A file may
be run anywhere, so it computes the same way everywhere. Arguments and outputs keep their element
types, so the file drops in where the old one was.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from compress.errors import NothingToCompress
from compress.quantize.drafting import Quantized
from compress.quantize.folding import fold_batch_norm
from compress.quantize.islands import given_to
from compress.quantize.layers import STAYS, type_name, weighted_layers
from compress.quantize.narrowing import TYPES, HalfPrecision, Narrower, store_half_, tensor_at
from compress.quantize.replacing import (
    measure_replaced,
    reference_for,
    replace_layers_,
    stored_table,
)
from compress.result import Layer

__all__ = ["store_half_", "to_float32", "to_half"]


def to_float32(graph_module: fx.GraphModule, islands: Mapping[str, str] | None = None) -> Quantized:
    """Return a copy with BatchNorm folded into the layer before it, all in float32.

    Args:
        graph_module: Left as it is.
        islands: Name to the reason why a module stays TorchScript.
    """
    model = copy.deepcopy(graph_module).eval()
    fold_batch_norm(model)
    table = [
        Layer(
            name=name,
            type=type_name(layer.module),
            precision="fp32",
            size_bytes=(layer.size_bytes, layer.size_bytes),
            reason=(islands or {}).get(name, STAYS) if layer.is_island else None,
        )
        for name, layer in weighted_layers(model).items()
    ]
    return Quantized(model, table)


def to_half(
    graph_module: fx.GraphModule,
    islands: Mapping[str, str] | None = None,
    precision: HalfPrecision = "fp16",
    probes: Iterable[Sequence[Any]] = (),
) -> Quantized:
    """Return a copy whose weights are stored in 16 bits and widened where they are used.

    An island's own weights stay as they are; those that the graph gives it are narrowed.

    Args:
        graph_module: Left as it is.
        islands: Name to the reason why a module stays TorchScript.
        precision: `fp16` or `bf16`.
        probes: Few, small batches on which each layer's error is measured.

    Raises:
        NothingToCompress: No weights, or none that fit.
    """
    folded = to_float32(graph_module, islands)
    model = folded.graph_module
    layers = weighted_layers(model)
    batches = list(probes)
    reference = reference_for(model, batches)
    loose_nodes = _loose_tensors(model)
    given = {name: [path for path, _ in given_to(model, name)] for name in layers}
    narrower = Narrower(precision)
    reasons = replace_layers_(
        model, [name for name, layer in layers.items() if not layer.is_island], narrower.convert
    )
    held = {f"{name}." for name, reason in reasons.items() if reason is not None}
    loose = narrower.narrow_loose(
        model, [node for node in loose_nodes if not str(node.target).startswith(tuple(held))]
    )
    model.graph.eliminate_dead_code()
    model.delete_all_unused_submodules()
    model.recompile()
    sqnr_db = measure_replaced(reference, model, graph_module, layers, batches)
    table = stored_table(layers, model, reasons, islands or {}, sqnr_db)
    table = [_with_given(layer, model, given[layer.name], precision) for layer in table]
    if not loose and not any(layer.precision == precision for layer in table):
        named = "; ".join(f"{layer.name}: {layer.reason}" for layer in table[:5])
        raise NothingToCompress(
            f"The model holds no weights that can be stored in {TYPES[precision][0]}"
            f"{f' ({named})' if named else ''}."
        )
    return Quantized(model, table)


def _with_given(
    layer: Layer, model: fx.GraphModule, paths: Sequence[str], precision: HalfPrecision
) -> Layer:
    """Note in an island's row which of the weights that it is given are in 16 bits now."""
    before, after = layer.size_bytes
    given = [tensor_at(model, path) for path in paths]
    saved = sum(value.nbytes for value in given if value.dtype == TYPES[precision][1])
    if not saved:
        return layer
    if 2 * saved == before:
        layer = replace(layer, precision=precision, reason=None)
    return replace(layer, size_bytes=(before, after - saved))


def _loose_tensors(model: fx.GraphModule) -> list[fx.Node]:
    """Return the nodes that read a float32 tensor by itself."""
    return [
        node
        for node in model.graph.nodes
        if node.op == "get_attr" and tensor_at(model, str(node.target)).dtype == torch.float32
    ]
