"""Cross-layer equalization: even out the ranges of the channels between two layers.

Where `f(s x) = s f(x)` for positive `s`, a factor may move from one layer's output channel to the
next layer's input channel. With ranges `r1` and `r2` of channel `i`, `s = sqrt(r1 r2) / r2` makes
both `sqrt(r1 r2)`: the first layer is divided by `s`, the second multiplied.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
eq. 11. The paper puts relu in relu6's place. Here relu6 stays, and a channel moves only where
nothing is clipped before or after, by a quarter of what calibration saw at least; what relu6 does
clip stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize.channels import CONVOLUTIONS, LAYERS, Channels, is_peaky
from compress.quantize.fx_backend import clip_ends
from compress.quantize.stepping import Stepper, called_once

_SWEEPS = 30
_ENOUGH = 1e-3
"""Of change in a sweep's factors, after which the ranges count as even."""
_HEADROOM = 1.25
"""Below a clip, as a multiple of the peak that calibration saw."""

_SCALING_MODULES = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d,
    nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d,
)  # fmt: skip
_SCALING: frozenset[Any] = frozenset(
    {
        F.relu, torch.relu, "relu", "relu_", F.leaky_relu, F.max_pool1d, F.max_pool2d,
        F.max_pool3d, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d,
        F.adaptive_avg_pool2d, F.adaptive_avg_pool3d, F.adaptive_max_pool2d, "contiguous",
    }
)  # fmt: skip
_FLATTENING: frozenset[Any] = frozenset({torch.flatten, "flatten"})
_MEANS: frozenset[Any] = frozenset({torch.mean, "mean"})


@dataclass
class _Pair:
    """Two layers with only what keeps scales between them.

    Attributes:
        first: Name of the layer before.
        second: Name of the layer behind.
        clips: Nodes between them that clip at a value above zero, and that value.
    """

    first: str
    second: str
    clips: list[tuple[fx.Node, float]]


def equalize_(graph_module: fx.GraphModule, batches: Sequence[Sequence[Any]]) -> list[str]:
    """Equalize every pair of layers of a float graph, in place; BatchNorm must be folded before.

    Args:
        graph_module: Computes the same afterwards, up to rounding.
        batches: Inputs that show what relu6 clips; looked at only where there is one.

    Returns:
        Names of the layers that changed, in order of their call.
    """
    pairs = _pairs(graph_module)
    floors = _floors(graph_module, batches, pairs)
    for _ in range(_SWEEPS):
        change = 0.0
        for index, pair in enumerate(pairs):
            factors = _factors(
                Channels(graph_module.get_submodule(pair.first)),
                Channels(graph_module.get_submodule(pair.second)),
                floors.get(index),
            )
            if index in floors:
                floors[index] = floors[index] / factors
            change = max(change, float((factors - 1).abs().max()))
        if change < _ENOUGH:
            break
    graph_module.recompile()
    changed = {name for pair in pairs for name in (pair.first, pair.second)}
    return [
        str(node.target)
        for node in graph_module.graph.nodes
        if node.op == "call_module" and node.target in changed
    ]


def _factors(first: Channels, second: Channels, floor: Tensor | None) -> Tensor:
    """Move factors between two layers.

    Args:
        first: The layer before.
        second: The layer behind; it may have several inputs for each output of the first.
        floor: Least factor of each channel, `[channels]`; where above 1, the channel is clipped.

    Returns:
        What the first layer was divided by, `[channels]`.
    """
    repeats = second.inputs // first.outputs
    before = first.output_peaks().double()
    behind = second.input_peaks().double().view(first.outputs, repeats).amax(1)
    factors = torch.where(is_peaky(before) & is_peaky(behind), (before / behind).sqrt(), 1.0)
    if floor is not None:
        factors = torch.where(floor > 1, 1.0, torch.maximum(factors, floor))
    first.scale_outputs(1 / factors)
    second.scale_inputs(factors.repeat_interleave(repeats))
    return factors


def _pairs(graph_module: fx.GraphModule) -> list[_Pair]:
    once = called_once(graph_module)
    pairs = []
    for name, node in once.items():
        layer = graph_module.get_submodule(name)
        if type(layer) not in LAYERS:
            continue
        clips: list[tuple[fx.Node, float]] = []
        flat = isinstance(layer, nn.Linear)
        behind = _only_user(node)
        while behind is not None and not (behind.op == "call_module" and behind.target in once
                                          and _is_layer(graph_module, behind)):  # fmt: skip
            cap = _clip(graph_module, behind)
            flattens = not flat and _flattens(graph_module, behind)
            if cap is not None:
                clips.append((behind, cap))
            elif not flattens and not _keeps_scale(graph_module, behind):
                behind = None
                break
            flat = flat or flattens
            behind = _only_user(behind)
        if behind is None:
            continue
        second = Channels(graph_module.get_submodule(str(behind.target)))
        outputs = Channels(layer).outputs
        # axis 1 must have been flattened if, and only if, features are what the next one takes
        if flat == isinstance(second.layer, nn.Linear) and second.inputs % outputs == 0:
            if second.inputs != outputs and isinstance(layer, nn.Linear):
                continue
            pairs.append(_Pair(name, str(behind.target), clips))
    return pairs


def _only_user(node: fx.Node) -> fx.Node | None:
    """Return the one node that takes another as its first argument, if there is no other."""
    user = next(iter(node.users), None)
    if len(node.users) != 1 or user is None or user.op == "output" or not user.args:
        return None
    return user if user.args[0] is node and user.all_input_nodes == [node] else None


def _is_layer(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    layer = graph_module.get_submodule(str(node.target))
    return type(layer) in LAYERS


def _keeps_scale(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))) in _SCALING_MODULES
    if node.target in _MEANS and not _has_dtype(node):
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return bool(keeps) and _are_spatial(axes)
    return node.target in _SCALING


def _flattens(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether channels become features, each channel's side by side."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        return isinstance(module, nn.Flatten) and (module.start_dim, module.end_dim) == (1, -1)
    if node.target in _FLATTENING:
        ends = dict(enumerate(node.args))
        start = ends.get(1, node.kwargs.get("start_dim", 0))
        end = ends.get(2, node.kwargs.get("end_dim", -1))
        return (start, end) == (1, -1)
    if node.target in _MEANS and not _has_dtype(node):
        axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
        keeps = node.args[2] if len(node.args) > 2 else node.kwargs.get("keepdim", False)
        return not keeps and _are_spatial(axes)
    return False


def _has_dtype(node: fx.Node) -> bool:
    return node.kwargs.get("dtype") is not None or len(node.args) > 3


def _are_spatial(axes: object) -> bool:
    return isinstance(axes, list | tuple) and set(axes) in ({2, 3}, {-1, -2})


def _clip(graph_module: fx.GraphModule, node: fx.Node) -> float | None:
    """Return the upper end of what clips between zero and some value, if the node does so."""
    ends = clip_ends(graph_module, node)
    return ends[1] if ends is not None and ends[0] == 0 < ends[1] else None


def _floors(
    graph_module: fx.GraphModule, batches: Sequence[Sequence[Any]], pairs: Sequence[_Pair]
) -> dict[int, Tensor]:
    """Return by pair how far each channel's factor may fall, `[channels]`; above 1, not at all."""
    clips = {node: (index, cap) for index, pair in enumerate(pairs) for node, cap in pair.clips}
    floors: dict[int, Tensor] = {}
    if not clips:
        return floors
    stepper = Stepper(graph_module, batches)
    for node in stepper.nodes():
        if node not in clips:
            continue
        index, cap = clips[node]
        peak = -math.inf
        for value in stepper.inputs(node):
            is_map = isinstance(graph_module.get_submodule(pairs[index].first), CONVOLUTIONS)
            axis = 1 if is_map else value.dim() - 1
            channels = value.amax([each for each in range(value.dim()) if each != axis]).double()
            peak = channels if isinstance(peak, float) else torch.maximum(peak, channels)
        if isinstance(peak, Tensor):
            outputs = Channels(graph_module.get_submodule(pairs[index].first)).outputs
            floor = peak.view(outputs, -1).amax(1).clamp(min=0) * (_HEADROOM / cap)
            floors[index] = torch.maximum(floors[index], floor) if index in floors else floor
    return floors
