"""SmoothQuant: move outliers of activations behind a normalisation into the weights.

Some channels of what a transformer's norms give are a hundred times larger than others, and one
scale has to span them all. Dividing channel `j` of the norm's weight and bias by `s_j`, and
multiplying the column `j` of the linear layers behind by it, changes no answer:
`s_j = max|X_j|**alpha / max|W_j|**(1 - alpha)`, over calibration samples and over all of these
layers.

Source: Xiao et al. 2022, SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
Language Models, eq. 4.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize.stepping import Stepper

_LEAST = 1e-5
"""Peaks of channels below that are as good as none."""

_ROW_MAJOR: frozenset[Any] = frozenset(
    {
        "reshape", "view", "flatten", "unflatten", "contiguous", "clone", "squeeze", "unsqueeze",
        torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze, torch.unflatten,
        torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default,
        torch.ops.aten.unflatten.int, F.dropout, torch.ops.aten.clone.default,
    }
)  # fmt: skip
"""Where the last axis keeps its length, they keep it as it is."""
_TRANSPOSING: frozenset[Any] = frozenset({"transpose", torch.transpose})
_PERMUTING: frozenset[Any] = frozenset({"permute", torch.permute})
_SIZES: frozenset[Any] = frozenset(
    {"size", "dim", torch.ops.aten.size.int, torch.ops.aten.sym_size.int}
)


@dataclass
class _Place:
    """A parameter, and where the graph's modules hold it."""

    owner: nn.Module
    leaf: str

    @property
    def value(self) -> Tensor:
        value = getattr(self.owner, self.leaf)
        assert isinstance(value, Tensor)
        return value.detach()

    def set(self, value: Tensor) -> None:
        if isinstance(getattr(self.owner, self.leaf), nn.Parameter):
            setattr(self.owner, self.leaf, nn.Parameter(value, requires_grad=False))
        else:
            setattr(self.owner, self.leaf, value)


@dataclass(frozen=True)
class _End:
    """Of a value: its number of axes, and the length of the last."""

    rank: int
    length: int


@dataclass
class _Norm:
    """A node whose output has a weight for each channel of the last axis, and a bias or none."""

    name: str
    node: fx.Node
    vectors: list[_Place]


def smooth_(
    graph_module: fx.GraphModule, batches: Sequence[Sequence[Any]], alpha: float
) -> list[str]:
    """Smooth a float graph in place; it computes the same afterwards, up to rounding.

    Args:
        graph_module: Lifted; LayerNorm, RMSNorm, or a product with a vector of weights, followed
            by nothing but Linear layers. Others stay as they are.
        batches: Inputs to find the peaks of activations with.
        alpha: 0 evens out the weights, 1 the activations.

    Returns:
        Names of the norms, or of their weights, that were smoothed, in order of their call.
    """
    uses = _uses(graph_module)
    norms = {norm.node: norm for norm in _norms(graph_module, uses)}
    peaks, ends = _observe(graph_module, batches, set(norms))
    smoothed = []
    for node, norm in norms.items():
        weights = _weights_behind(graph_module, node, uses, ends)
        channels = len(norm.vectors[0].value)
        if (
            not weights
            or node not in peaks
            or any(w.value.shape[1:] != (channels,) for w in weights)
        ):
            continue
        columns = torch.stack([weight.value.abs().amax(0) for weight in weights]).amax(0)
        factors = _factors(peaks[node], columns.double(), alpha)
        for vector in norm.vectors:
            vector.set((vector.value / factors).to(vector.value.dtype))
        for weight in weights:
            weight.set((weight.value * factors).to(weight.value.dtype))
        smoothed.append(norm.name)
    graph_module.recompile()
    return smoothed


def _factors(activations: Tensor, weights: Tensor, alpha: float) -> Tensor:
    """Return eq. 4; 1 for channels without activations or weights. All `[channels]`."""
    empty = (activations < _LEAST) | (weights < _LEAST)
    factors = activations.pow(alpha) / weights.pow(1 - alpha)
    return torch.where(empty, 1.0, factors)


def _uses(graph_module: fx.GraphModule) -> dict[int, int]:
    """Return how often the graph reads each parameter, by identity, itself or in a module."""
    uses: dict[int, int] = {}
    for node in graph_module.graph.nodes:
        read: list[Tensor] = []
        if node.op == "call_module":
            read = list(graph_module.get_submodule(str(node.target)).parameters())
        elif node.op == "get_attr":
            place = _place(graph_module, str(node.target))
            value = getattr(place.owner, place.leaf)
            read = [value] * len(node.users) if isinstance(value, Tensor) else []
        for value in read:
            uses[id(value)] = uses.get(id(value), 0) + 1
    return uses


def _place(graph_module: fx.GraphModule, path: str) -> _Place:
    owner, _, leaf = path.rpartition(".")
    return _Place(graph_module.get_submodule(owner), leaf)


def _is_used_once(place: _Place, uses: dict[int, int]) -> bool:
    return uses.get(id(getattr(place.owner, place.leaf))) == 1


def _norms(graph_module: fx.GraphModule, uses: dict[int, int]) -> list[_Norm]:
    found = []
    for node in graph_module.graph.nodes:
        name, vectors = "", list[_Place]()
        if node.op == "call_module":
            module = graph_module.get_submodule(str(node.target))
            if isinstance(module, nn.LayerNorm | nn.RMSNorm) and len(module.normalized_shape) == 1:
                name = str(node.target)
                leaves = ("weight", "bias")
                vectors = [
                    _Place(module, leaf)
                    for leaf in leaves
                    if getattr(module, leaf, None) is not None
                ]
                if module.weight is None:
                    continue
        elif node.target in (operator.mul, torch.mul) and len(node.all_input_nodes) == 2:
            # RMSNorm, written out
            for source in node.all_input_nodes:
                if source.op == "get_attr":
                    name, vectors = str(source.target), [_place(graph_module, str(source.target))]
        if (
            vectors
            and all(isinstance(getattr(v.owner, v.leaf), Tensor) for v in vectors)
            and all(v.value.dim() == 1 and v.value.is_floating_point() for v in vectors)
            and all(_is_used_once(v, uses) for v in vectors)
        ):
            found.append(_Norm(name, node, vectors))
    return found


def _observe(
    graph_module: fx.GraphModule, batches: Sequence[Sequence[Any]], norms: set[fx.Node]
) -> tuple[dict[fx.Node, Tensor], dict[fx.Node, _End]]:
    """Return the norms' peaks `[channels]`, and how every value ends."""
    peaks: dict[fx.Node, Tensor] = {}
    ends: dict[fx.Node, _End] = {}
    stepper = Stepper(graph_module, batches)
    for node in stepper.nodes():
        for source in node.all_input_nodes:
            if source in ends:
                continue
            for value in stepper.values(source):
                if not isinstance(value, Tensor) or value.dim() == 0:
                    continue
                ends[source] = _End(value.dim(), value.shape[-1])
                if source in norms and value.numel():
                    peak = value.abs().reshape(-1, value.shape[-1]).amax(0).double()
                    peaks[source] = torch.maximum(peaks[source], peak) if source in peaks else peak
    return peaks, ends


def _weights_behind(
    graph_module: fx.GraphModule, norm: fx.Node, uses: dict[int, int], ends: dict[fx.Node, _End]
) -> list[_Place]:
    """Return the weights `[out, channels]` that alone see a norm's output; none if others do."""
    weights: list[_Place] = []
    todo = [norm]
    while todo:
        node = todo.pop()
        for user in node.users:
            if user.target in _SIZES or user.target is getattr:
                continue
            weight = _linear_weight(graph_module, user, node)
            if weight is not None:
                if not _is_used_once(weight, uses):
                    return []
                weights.append(weight)
            elif _keeps_last_axis(graph_module, user, node, ends):
                todo.append(user)
            else:
                return []
    return weights


def _linear_weight(graph_module: fx.GraphModule, user: fx.Node, source: fx.Node) -> _Place | None:
    if user.op == "call_module":
        module = graph_module.get_submodule(str(user.target))
        return _Place(module, "weight") if type(module) is nn.Linear else None
    if user.target is F.linear and user.args[0] is source:
        weight = user.args[1] if len(user.args) > 1 else user.kwargs.get("weight")
        if isinstance(weight, fx.Node) and weight.op == "get_attr":
            return _place(graph_module, str(weight.target))
    return None


def _keeps_last_axis(
    graph_module: fx.GraphModule, user: fx.Node, source: fx.Node, ends: dict[fx.Node, _End]
) -> bool:
    """Whether a node moves a value's elements about, but none within the last axis."""
    before, after = ends.get(source), ends.get(user)
    if not user.args or user.args[0] is not source or before is None or after is None:
        return False
    if before.length != after.length:
        return False
    if user.op == "call_module":
        module = graph_module.get_submodule(str(user.target))
        return isinstance(module, nn.Identity | nn.Dropout | nn.Flatten | nn.Unflatten)
    rest: list[Any] = list(user.args[1:])
    if user.target in _TRANSPOSING:
        return all(isinstance(axis, int) and axis % before.rank < before.rank - 1 for axis in rest)
    if user.target in _PERMUTING:
        axes = rest[0] if isinstance(rest[0], list | tuple) else rest
        return isinstance(axes[-1], int) and axes[-1] % before.rank == before.rank - 1
    if user.target is operator.getitem:
        return _cuts_other_axes(rest[0], before.rank)
    return user.target in _ROW_MAJOR


def _cuts_other_axes(index: Any, rank: int) -> bool:
    """Whether `x[index]` leaves the last axis whole."""
    parts = index if isinstance(index, tuple) else (index,)
    if any(isinstance(part, fx.Node | Tensor | list) for part in parts):
        return False
    named = [part for part in parts if part is not None and part is not Ellipsis]
    reaches_last = len(named) == rank or (Ellipsis in parts and parts[-1] is not Ellipsis)
    return not reaches_last or parts[-1] == slice(None, None, None)
