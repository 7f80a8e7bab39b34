"""How much each class of channels matters: by what it does to the answers, or by its weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.prune.layers import TRANSPOSED, Bound
from compress.prune.tracing import Traced
from compress.structure import batch_length, map_tensors, tensors_in

_BELOW = 1e-100
_PROJECTIONS = 4
"""Random mixtures of the answers that are differentiated for each batch."""


def by_weights(graph_module: fx.GraphModule, traced: Traced) -> Tensor:
    """Score each class by the squared weights of all that makes, scales or reads it, `[classes]`.

    Each layer's are divided by their mean over its channels, so that layers count alike.

    Source: Fang et al. 2023, DepGraph, sect. 3.3, without the sparse training.
    """
    scores = torch.zeros(len(traced.classes), dtype=torch.float64)
    found = [
        pair for name, bound in traced.layers.items()
        for pair in _squares(graph_module.get_submodule(name), bound)
    ]  # fmt: skip
    for name, matrix in traced.matrices.items():
        squares = _attribute(graph_module, name).detach().square()
        found.append((matrix.outputs, squares.sum(1 - matrix.axis)))
        if matrix.inputs is not None:
            found.append((matrix.inputs, squares.sum(matrix.axis)))
    for numbers, squares in found:
        relative = squares.double() / squares.mean().clamp(min=torch.finfo(torch.float32).tiny)
        scores.index_add_(0, traced.classes.of(numbers), relative)
    return scores


def _attribute(graph_module: fx.GraphModule, path: str) -> Tensor:
    scope, _, name = path.rpartition(".")
    value = getattr(graph_module.get_submodule(scope), name)
    assert isinstance(value, Tensor)
    return value


def _squares(layer: nn.Module, bound: Bound) -> list[tuple[Tensor, Tensor]]:
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor):
        return []
    squares = weight.detach().float().square()
    if not bound.makes:
        return [(bound.outputs, squares)]
    groups = getattr(layer, "groups", 1)
    grouped = squares.reshape(groups, len(squares) // groups, squares.shape[1], -1)
    reads, makes = (1, 2) if isinstance(layer, TRANSPOSED) else (2, 1)
    return [
        (bound.inputs, grouped.sum((makes, 3)).flatten()),
        (bound.outputs, grouped.sum((reads, 3)).flatten()),
    ]


def by_answers(
    graph_module: fx.GraphModule, traced: Traced, batches: Sequence[Sequence[Any]]
) -> Tensor:
    """Score each class by how far the answers would move without it, `[classes]`.

    To first order a sample's answers `f` move by `J a` where a layer no longer reads the channel's
    activations `a`; `E |J a|²` is estimated by `E (r · J a)²` over random signs `r`. No labels are
    needed. Those that no layer reads, or that move nothing, come below all others, by weights.

    Source: Molchanov et al. 2019, Importance Estimation for Neural Network Pruning, eq. 8, with the
    answers in the place of the loss.

    Args:
        graph_module: In eval mode; left as it is.
        traced: Of the same graph.
        batches: Inputs.
    """
    graph_module = copy.deepcopy(
        graph_module
    )  # of state that a run leaves behind, it keeps nothing
    generator = torch.Generator().manual_seed(0)
    bounds = {name: bound for name, bound in traced.layers.items() if bound.makes}
    of = {name: traced.classes.of(bound.inputs).contiguous() for name, bound in bounds.items()}
    scored = torch.unique(torch.cat(list(of.values()))) if of else torch.zeros(0, dtype=torch.int64)
    places = {name: torch.searchsorted(scored, classes) for name, classes in of.items()}
    squares = torch.zeros(len(scored), dtype=torch.float64)
    for batch in batches:
        samples = batch_length(batch)
        answers, read = _run_watched(graph_module, batch, list(bounds))
        if not answers or not read:
            continue
        for _ in range(_PROJECTIONS):
            signs = [
                torch.randint(0, 2, each.shape, generator=generator) * 2.0 - 1 for each in answers
            ]
            gradients = torch.autograd.grad(
                answers, [given for _, given in read], signs, retain_graph=True, allow_unused=True
            )
            moves = torch.zeros(samples, len(scored))
            for (name, given), gradient in zip(read, gradients, strict=True):
                if gradient is not None:
                    moved = _by_channel(given.detach() * gradient, bounds[name].axis, samples)
                    moves.index_add_(1, places[name], moved)
            squares += moves.square().sum(0)
    scores = torch.zeros(len(traced.classes), dtype=torch.float64)
    scores[scored] = squares
    return torch.where(scores > 0, scores, _BELOW * by_weights(graph_module, traced))


def _run_watched(
    graph_module: fx.GraphModule, batch: Sequence[Any], names: Sequence[str]
) -> tuple[list[Tensor], list[tuple[str, Tensor]]]:
    """Return the answers and what each layer was given at each call, all differentiable."""
    read: list[tuple[str, Tensor]] = []

    def watch(name: str) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Tensor, ...]]:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
            (features,) = given
            if not features.requires_grad:  # all before it is frozen
                features = features.detach().requires_grad_()
            read.append((name, features))
            return (features,)

        return hook

    handles = [
        graph_module.get_submodule(name).register_forward_pre_hook(watch(name)) for name in names
    ]
    try:
        with torch.enable_grad():
            answers = tensors_in(graph_module(*map_tensors(list(batch), Tensor.clone)))
    finally:
        for handle in handles:
            handle.remove()
    return [each for each in answers if each.requires_grad], read


def _by_channel(products: Tensor, axis: int, samples: int) -> Tensor:
    """Sum over all but samples and channels, `[samples, channels]`; a sample's windows adjoin."""
    channels = products.movedim(axis, -1)
    rows = samples if len(products) % samples == 0 and axis != 0 else 1
    return channels.reshape(rows, -1, products.shape[axis]).sum(1).expand(samples, -1) / (
        1 if rows == samples else samples
    )
