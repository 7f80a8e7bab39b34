"""AdaRound: learn for each weight whether to round it up or down.

Rounding to nearest is best for each weight, not for what they compute together. Layer by layer,
with `w / s` rounded down and `h(V)` of the step added, `V` is learned by minimising
`|W x - W' x'|**2 + lambda * sum(1 - |2 h(V) - 1|**beta)`, where `x'` is what the layers before, in
their final rounding, give, and `h(V) = clip(sigmoid(V) (zeta - gamma) + gamma, 0, 1)`. With
falling `beta`, every `h` ends at 0 or 1.

Source: Nagel et al. 2020, Up or Down? Adaptive Rounding for Post-Training Quantization, eq. 21 to
25; zeta, gamma, beta and the warm-up as there.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize.channels import Channels
from compress.quantize.stepping import Stepper, called_once

_ZETA, _GAMMA = 1.1, -0.1
_STEPS = 600
_WARM_UP = 0.2
_BETA = (20.0, 2.0)
_WEIGHT = 0.01
_RATE = 0.01
_TRADE = 2.0
"""Of the error of rounding to nearest, against all weights' distance from integers."""
_ROWS = 2048
"""Positions of a layer's input that are kept to learn from."""
_DRAWN = 128
"""Of these, in one step."""


def round_adaptively_(
    graph_module: fx.GraphModule,
    batches: Sequence[Sequence[Any]],
    scales: Mapping[str, Tensor],
    limits: Mapping[str, tuple[int, int]],
    *,
    seed: int = 0,
    on_layer: Callable[[int, int], None] = lambda done, total: None,
) -> list[str]:
    """Put weights on the grid of their scales, in place, rounded so that outputs stay close.

    Time is proportional to the sum over layers of weights.

    Args:
        graph_module: Float, BatchNorm folded.
        batches: Inputs, all of which are held in memory at every node, twice.
        scales: Layer name to weight scale, `[out]` or `[1]`, float32; others stay as they are.
        limits: Layer name to least and greatest integer.
        seed: Seeds what is drawn.
        on_layer: Is told after each layer how many are done, of how many.

    Returns:
        Names of the layers that were rounded, in order of their call.
    """
    generator = torch.Generator().manual_seed(seed)
    names = [
        name
        for name in called_once(graph_module)
        if name in scales and _is_plain(graph_module.get_submodule(name))
    ]
    exact = Stepper(copy.deepcopy(graph_module), batches)
    rounded = Stepper(graph_module, batches)
    done: list[str] = []
    for node, twin in zip(rounded.nodes(), exact.nodes(), strict=True):
        name = str(node.target)
        if node.op != "call_module" or name not in names:
            continue
        layer = graph_module.get_submodule(name)
        rows = _rows(layer, rounded.inputs(node), exact.inputs(twin), generator)
        if rows is not None:
            grid = _Grid(layer, scales[name], *limits[name])
            chosen = _learn(grid, *rows, generator)
            layer.weight = nn.Parameter(chosen, requires_grad=False)
            done.append(name)
        on_layer(len(done), len(names))
    return done


class _Grid:
    """A weight as `[groups, out / groups, inputs]`, in units of its scale.

    Attributes:
        floor: The integers below.
        share: How far each weight is above its integer, in [0, 1).
        step: Scale, to multiply integers with.
    """

    def __init__(self, layer: nn.Module, scale: Tensor, low: int, high: int) -> None:
        channels = Channels(layer)
        weight = channels.layer.weight.detach()
        self._shape, self._low, self._high = weight.shape, low, high
        grouped = (channels.groups, channels.outputs // channels.groups, -1)
        step = scale.to(weight.dtype).expand(channels.outputs) if scale.numel() == 1 else scale
        self.step = step.to(weight.dtype).view(*grouped[:2], 1)
        self.exact = weight.reshape(grouped)
        units = self.exact / self.step
        self.floor = units.floor()
        self.share = units - self.floor

    def weight(self, up: Tensor) -> Tensor:
        """Return weights with `up` steps added to each integer below."""
        return (self.floor + up).clamp(self._low, self._high) * self.step

    def nearest(self) -> Tensor:
        """Return the steps that round each weight to its nearest integer."""
        return (self.share >= 0.5).to(self.share.dtype)

    def ungrouped(self, weight: Tensor) -> Tensor:
        """Return a weight in the layer's own shape."""
        return weight.reshape(self._shape).contiguous()


def _learn(grid: _Grid, seen: Tensor, exact: Tensor, generator: torch.Generator) -> Tensor:
    """Return the layer's weight in its own shape, rounded for the least error.

    Args:
        grid: The weight.
        seen: Inputs as the rounded layers before give them, `[groups, rows, inputs]`.
        exact: As the float layers do.
        generator: Draws rows.
    """
    wanted = exact @ grid.exact.transpose(1, 2)

    def error(weight: Tensor, rows: Tensor | slice) -> Tensor:
        missed = seen[:, rows] @ weight.transpose(1, 2) - wanted[:, rows]
        return missed.square().sum() / missed.shape[1]

    everything = slice(None)
    nearest = grid.weight(grid.nearest())
    least = error(nearest, everything)
    if float(least) == 0:
        return grid.ungrouped(nearest)
    scale = _WEIGHT * grid.share.numel() * _TRADE / least
    logits = -torch.log((_ZETA - _GAMMA) / (grid.share - _GAMMA) - 1)
    logits.requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=_RATE)
    for step in range(_STEPS):
        rows = torch.randint(seen.shape[1], (_DRAWN,), generator=generator)
        with torch.enable_grad():
            up = (torch.sigmoid(logits) * (_ZETA - _GAMMA) + _GAMMA).clamp(0, 1)
            loss = error(grid.weight(up), rows) * scale
            progress = (step / _STEPS - _WARM_UP) / (1 - _WARM_UP)
            if progress > 0:
                beta = _BETA[1] + (_BETA[0] - _BETA[1]) * (1 + math.cos(math.pi * progress)) / 2
                loss = loss + _WEIGHT * (1 - (2 * up - 1).abs().pow(beta)).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    learned = grid.weight((logits.detach() > 0).to(grid.share.dtype))
    return grid.ungrouped(learned if float(error(learned, everything)) < float(least) else nearest)


def _is_plain(layer: nn.Module) -> bool:
    if isinstance(layer, nn.Linear):
        return True
    return type(layer) in (nn.Conv1d, nn.Conv2d) and not isinstance(layer.padding, str)


def _rows(
    layer: nn.Module, seen: Sequence[Tensor], exact: Sequence[Tensor], generator: torch.Generator
) -> tuple[Tensor, Tensor] | None:
    """Draw what the layer multiplies its weights with, at the same positions of both inputs.

    Returns:
        Both as `[groups, rows, inputs]`; None where there is nothing to draw from.
    """
    pairs: list[tuple[Tensor, Tensor]] = []
    for left, right in zip(seen, exact, strict=True):
        if left.numel() == 0:
            continue
        count = -(-_ROWS // len(seen))
        if isinstance(layer, nn.Linear):
            flat = left.reshape(-1, left.shape[-1])
            rows = torch.randint(len(flat), (count,), generator=generator)
            pairs.append((flat[rows], right.reshape(-1, right.shape[-1])[rows]))
        else:
            picks = _positions(layer, left, count, generator)
            pairs.append((_patches(layer, left, *picks), _patches(layer, right, *picks)))
    if not pairs:
        return None
    groups = Channels(layer).groups
    left, right = (
        torch.cat(parts).view(-1, groups, parts[0].shape[1] // groups).transpose(0, 1).contiguous()
        for parts in zip(*pairs, strict=True)
    )
    return left, right


def _positions(
    layer: Any, image: Tensor, count: int, generator: torch.Generator
) -> tuple[Tensor, list[Tensor]]:
    """Draw samples, and where the kernel's first tap lies along each axis, padding included."""
    samples = torch.randint(len(image), (count,), generator=generator)
    corners = []
    for axis, length in enumerate(image.shape[2:]):
        reach = layer.dilation[axis] * (layer.kernel_size[axis] - 1) + 1
        places = (length + 2 * layer.padding[axis] - reach) // layer.stride[axis] + 1
        corners.append(torch.randint(places, (count,), generator=generator) * layer.stride[axis])
    return samples, corners


def _patches(layer: Any, image: Tensor, samples: Tensor, corners: list[Tensor]) -> Tensor:
    """Return what the kernel covers at each position, `[positions, channels * taps]`."""
    mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
    around = [each for axis in reversed(layer.padding) for each in (axis, axis)]
    padded = F.pad(image, around, mode)
    taps = [
        padded[(samples, slice(None), *(corner + layer.dilation[axis] * offset[axis]
                                        for axis, corner in enumerate(corners)))]
        for offset in itertools.product(*(range(size) for size in layer.kernel_size))
    ]  # fmt: skip
    return torch.stack(taps, 2).flatten(1)
