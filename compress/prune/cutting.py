"""Leaves out of a lifted graph the channels that are not kept: weights, and the sizes it spells."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.prune.choosing import Kept
from compress.prune.classes import axis_masks
from compress.prune.fitting import Fitter
from compress.prune.layers import cut_
from compress.prune.tracing import Traced
from compress.structure import map_tensors


def cut(
    graph_module: fx.GraphModule, example_inputs: Sequence[Any], traced: Traced, kept: Kept
) -> fx.GraphModule:
    """Return a copy of a lifted graph without the channels that are not kept.

    Args:
        graph_module: The one that was traced.
        example_inputs: Those it was traced with.
        traced: Where channels are.
        kept: Which of them stay.

    Raises:
        Unfit: A size of the graph hangs on channels in a way that is not known.
    """
    smaller = copy.deepcopy(graph_module)
    for name, bound in traced.layers.items():
        cut_(smaller.get_submodule(name), bound, kept)
    for name, numbers in traced.attributes.items():
        mask = kept(numbers)
        matrix = traced.matrices.get(name)
        if matrix is not None and matrix.inputs is not None:
            read = kept(matrix.inputs)
            mask = mask & (read if matrix.axis == 0 else read.unsqueeze(1))
        _cut_attribute_(smaller, name, mask)
    # of state that a run leaves behind, the copy keeps nothing
    Fitter(copy.deepcopy(smaller), smaller.graph, traced, kept).run(
        *map_tensors(list(example_inputs), Tensor.clone)
    )
    smaller.graph.lint()
    smaller.recompile()
    return smaller


def _cut_attribute_(root: nn.Module, path: str, mask: Tensor) -> None:
    if mask.all():
        return
    scope, _, name = path.rpartition(".")
    owner = root.get_submodule(scope)
    value = getattr(owner, name)
    smaller = value.detach()[_block(mask)].clone()
    if name in owner._parameters:
        owner._parameters[name] = nn.Parameter(smaller, requires_grad=value.requires_grad)
    elif name in owner._buffers:
        owner._buffers[name] = smaller
    else:
        setattr(owner, name, smaller)


def _block(mask: Tensor) -> tuple[Tensor, ...]:
    masks = axis_masks(mask)
    assert masks is not None
    return tuple(torch.meshgrid(*(each.nonzero().flatten() for each in masks), indexing="ij"))
