"""What pruning must be equal to: the whole model, in which no layer reads what was cut."""

from __future__ import annotations

import copy
import importlib
from collections.abc import Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, fx, nn

from compress.prune import Pruned, prune
from compress.prune.choosing import Kept
from compress.prune.layers import CONVOLUTIONS, TRANSPOSED
from compress.prune.tracing import Traced

PRUNE = importlib.import_module("compress.prune.prune")  # the package has a function of that name


def deaf(graph_module: fx.GraphModule, traced: Traced, kept: Kept) -> fx.GraphModule:
    """A copy of a graph with zeros in every weight that reads a channel that is not kept."""
    whole = copy.deepcopy(graph_module)
    for name, bound in traced.layers.items():
        if bound.makes:
            _deafen(whole.get_submodule(name), ~kept(bound.inputs))
    for name, matrix in traced.matrices.items():
        if matrix.inputs is not None:
            weight = whole.get_parameter(name).detach()
            weight[(slice(None),) * (1 - matrix.axis) + (~kept(matrix.inputs),)] = 0
    return whole


def _deafen(layer: nn.Module, cut: Tensor) -> None:
    weight = layer.weight.detach()
    assert isinstance(weight, Tensor)
    if isinstance(layer, TRANSPOSED):
        weight[cut] = 0
    elif isinstance(layer, CONVOLUTIONS):
        width = layer.in_channels // layer.groups
        for channel in torch.nonzero(cut).flatten().tolist():
            group, column = divmod(channel, width)
            made = layer.out_channels // layer.groups
            weight[group * made : (group + 1) * made, column] = 0
    else:
        weight[:, cut] = 0


def pruned_and_deaf(
    graph_module: fx.GraphModule, inputs: Sequence[Any], share: float
) -> tuple[Pruned, fx.GraphModule]:
    """What pruning makes of a graph, and the whole graph deaf to what it cut."""
    with mock.patch.object(PRUNE, "cut", wraps=PRUNE.cut) as cut:
        pruned = prune(graph_module, inputs, share)
    *_, traced, kept = cut.call_args.args
    return pruned, deaf(graph_module, traced, kept)
