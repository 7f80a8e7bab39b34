"""The per-layer table: what became of every weighted layer, and what it cost in accuracy."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.measure.fidelity import NoiseMeter
from compress.quantize.fx_backend import clip_ends
from compress.quantize.fx_layers import computes_wrongly, is_int8, is_rectified, stored_bytes
from compress.quantize.islands import weights_of
from compress.result import Layer
from compress.spec import LayerPrecision

STAYS = "It could not be lifted, and stays TorchScript as it was."
"""The reason of an island of which no other is known."""
_NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)


@dataclass(frozen=True)
class Weighted:
    """A module that the graph calls and that holds weights, or an island that is given some.

    Attributes:
        module: Float.
        size_bytes: Of its weights.
        is_island: Whether it stays TorchScript.
    """

    module: nn.Module
    size_bytes: int

    @property
    def is_island(self) -> bool:
        """Whether it stays TorchScript."""
        return isinstance(self.module, torch.jit.ScriptModule)


def weighted_layers(graph_module: fx.GraphModule) -> dict[str, Weighted]:
    """Return the weighted modules of a float graph by their names, in order of their call."""
    called = [str(node.target) for node in graph_module.graph.nodes if node.op == "call_module"]
    layers = {
        name: Weighted(
            graph_module.get_submodule(name),
            sum(weight.nbytes for weight in weights_of(graph_module, name)),
        )
        for name in dict.fromkeys(called)
    }
    return {name: layer for name, layer in layers.items() if layer.size_bytes > 0}


def layer_table(
    layers: Mapping[str, Weighted],
    converted: fx.GraphModule,
    overrides: Mapping[str, tuple[str, LayerPrecision]],
    islands: Mapping[str, str],
    sqnr_db: Mapping[str, float],
) -> list[Layer]:
    """List every weighted layer; a BatchNorm that was folded into its neighbour is no longer one.

    Args:
        layers: Name to float layer, before quantization.
        converted: The int8 graph.
        overrides: Name to (pattern, precision) that the request set.
        islands: Name to the reason why it stays TorchScript.
        sqnr_db: Name to signal-to-quantization-noise ratio of the layer's output.
    """
    called = {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    table = []
    for name, layer in layers.items():
        if name not in called:
            continue
        after = converted.get_submodule(name)
        quantized = is_int8(after)
        before_bytes = layer.size_bytes
        reason = None
        if layer.is_island:
            reason = islands.get(name, STAYS)
        elif not quantized:
            reason = _why_float(name, layer.module, overrides)
        table.append(
            Layer(
                name=name,
                type=type_name(layer.module),
                precision="int8" if quantized else "fp32",
                size_bytes=(before_bytes, stored_bytes(after) if quantized else before_bytes),
                sqnr_db=sqnr_db.get(name),
                reason=reason,
            )
        )
    return table


def type_name(module: nn.Module) -> str:
    """Return the class name a user knows the layer by."""
    if isinstance(module, torch.jit.ScriptModule):
        name = str(getattr(module, "original_name", ""))
        return name if name not in ("", "Module") else "TorchScript"
    return type(module).__name__


def _why_float(
    name: str, module: nn.Module, overrides: Mapping[str, tuple[str, LayerPrecision]]
) -> str:
    pattern, precision = overrides.get(name, ("", "int8"))
    if precision == "fp32":
        return f"override '{pattern}' keeps it fp32"
    kind = type_name(module)
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return f"{kind} has no static int8 kernel"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag):
        return f"{kind} looks rows up and multiplies nothing; static int8 does not apply"
    if isinstance(module, _NORMALISATIONS):
        return f"{kind} holds few weights, and they stay float for accuracy"
    if computes_wrongly(module):
        return f"torch's int8 kernel for a {kind} of such channels or kernel computes wrongly"
    if isinstance(getattr(module, "padding", None), str):
        return "padding 'same' with an even kernel has no int8 kernel"
    return f"{kind} has no int8 kernel"


def nothing_done(table: Sequence[Layer], why: str) -> str:
    """Say that no layer was compressed, and of the first few layers the reasons.

    Args:
        table: Every weighted layer.
        why: What none of them does, as `can become int8`.
    """
    if not table:
        return (
            "The model has no layer with weights, so there is nothing to compress. Was it frozen? "
            "Save it without torch.jit.freeze."
        )
    reasons = "; ".join(f"{layer.name}: {layer.reason or 'stays float'}" for layer in table[:5])
    return f"None of the model's {len(table)} weighted layers {why} ({reasons})."


def measure_layers(
    reference: fx.GraphModule,
    converted: fx.GraphModule,
    names: Iterable[str],
    batches: Iterable[Sequence[Tensor]],
) -> dict[str, float]:
    """Return the SQNR in dB of each layer's output, float graph against int8 graph.

    One batch is alive at a time. Outputs in the int8 graph carry the errors of all layers before.

    Args:
        reference: The fused float graph; its modules bear the names of the int8 ones.
        converted: The int8 graph.
        names: Layers to compare.
        batches: Few, small batches of inputs.
    """
    shared = [name for name in names if _called(reference, name) and _called(converted, name)]
    meters = {name: NoiseMeter() for name in shared}
    signals: dict[str, list[Tensor]] = {name: [] for name in shared}
    quantized = {name: converted.get_submodule(name) for name in shared}
    clips = _clips_behind(reference)
    with_relu = {n for n, module in quantized.items() if _gives_no_negatives(module)}

    def keep(name: str, output: Tensor) -> None:
        signals[name].append(output)

    def compare(name: str, output: Tensor) -> None:
        if signals[name]:
            signal = signals[name].pop(0)
            # conversion also fuses a relu that stood apart in the float graph
            signal = signal.relu() if name in with_relu else signal
            if name in clips:  # and gives the scale of what is left of it
                signal, output = signal.clamp(*clips[name]), output.clamp(*clips[name])
            meters[name].add(signal, output)

    with torch.no_grad():
        for batch in batches:
            for outputs in signals.values():
                outputs.clear()
            _run_hooked(reference, shared, batch, keep)
            _run_hooked(converted, shared, batch, compare)
    return {name: meter.sqnr_db for name, meter in meters.items() if meter.elements}


def _clips_behind(reference: fx.GraphModule) -> dict[str, tuple[float, float]]:
    """Return the modules whose output is clipped before anyone else sees it, and to what."""
    found = {}
    for node in reference.graph.nodes:
        ends = [clip_ends(reference, user) for user in node.users]
        if node.op == "call_module" and len(ends) == 1 and ends[0] is not None:
            found[str(node.target)] = ends[0]
    return found


def _gives_no_negatives(module: nn.Module) -> bool:
    """Whether a layer also applies the relu that followed it: in int8, or in a fused float pair."""
    if isinstance(module, nn.Sequential):
        return len(module) > 0 and isinstance(module[-1], nn.ReLU)
    return is_int8(module) and is_rectified(module)


def _called(graph_module: fx.GraphModule, name: str) -> bool:
    return any(n.op == "call_module" and n.target == name for n in graph_module.graph.nodes)


def _run_hooked(
    graph_module: fx.GraphModule,
    names: Sequence[str],
    batch: Sequence[Tensor],
    receive: Callable[[str, Tensor], None],
) -> None:
    def hook_for(name: str) -> Callable[[nn.Module, Any, Any], None]:
        def hook(_: nn.Module, __: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if isinstance(first, Tensor):
                receive(name, first.dequantize() if first.is_quantized else first)

        return hook

    handles = [graph_module.get_submodule(n).register_forward_hook(hook_for(n)) for n in names]
    try:
        graph_module(*batch)
    finally:
        for handle in handles:
            handle.remove()
