"""How channel numbers go through layers, and how a layer's weights are cut by them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from compress.prune.calls import channel_vector
from compress.prune.classes import Classes, axis_masks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_MANY_GROUPS = 8
"""Of so many, whole ones are cut; of fewer, the same place in each."""


@dataclass(frozen=True)
class Bound:
    """The channels that a layer reads and makes.

    Attributes:
        inputs: Numbers, `[in]`.
        outputs: Numbers, `[out]`; of a norm the same as `inputs`.
        axis: Of the input, where its channels lie.
    """

    inputs: Tensor
    outputs: Tensor
    axis: int

    @property
    def makes(self) -> bool:
        """Whether it makes channels of its own, and does not only scale those it reads."""
        return self.inputs is not self.outputs


def bind(classes: Classes, layer: Any, given: Tensor, before: Bound | None) -> Bound | None:
    """Number the channels of a layer and join what its kind joins.

    Args:
        classes: Of all channels.
        layer: In the graph.
        given: Numbers of its input.
        before: What the layer was bound to where it was called before.

    Returns:
        None where channels go through as if the layer were a function, or are not known to.
    """
    kind = type(layer)
    name = kind.__name__
    if kind in (*CONVOLUTIONS, *TRANSPOSED):
        axis = given.dim() - len(layer.kernel_size) - 1
        made = layer.out_channels
    elif kind is nn.Linear:
        axis, made = given.dim() - 1, layer.out_features
    elif (
        kind in BATCH_NORMS
        or kind is nn.GroupNorm
        or (kind is nn.PReLU and layer.num_parameters > 1)
    ):
        axis, made = 1, 0
    else:
        return None
    inputs = channel_vector(classes, given, axis, f"{name} mixes its channels")
    outputs = inputs
    if made:
        outputs = before.outputs if before else classes.fresh(int(made), of_layer=True)
    if before is not None:
        classes.join(inputs, before.inputs, f"{name} is called again on what has no channels")
    bound = Bound(inputs, outputs, axis)
    groups = getattr(layer, "groups", 1)
    if kind is nn.GroupNorm:
        _join_groups(classes, inputs.view(layer.num_groups, -1), None)
    elif made and groups > 1:
        _join_groups(classes, inputs.view(groups, -1), outputs.view(groups, -1))
    return bound


def _join_groups(classes: Classes, inputs: Tensor, outputs: Tensor | None) -> None:
    """Join what can only be cut together of `[groups, channels]`; a norm has no other outputs."""
    why = "its group also reads what has no channels"
    groups, width = inputs.shape
    if outputs is None or width == 1 or groups >= _MANY_GROUPS:
        classes.join_along(inputs, [1], why)
        if outputs is not None:
            classes.join_along(outputs, [1], why)
            classes.join(outputs[:, 0], inputs[:, 0], why)
    else:
        classes.join_along(inputs, [0], why)
        classes.join_along(outputs, [0], why)


Keep = Callable[[Tensor], Tensor]
"""From numbers to which of them are kept, bool."""


def cut_(layer: Any, bound: Bound, keep: Keep) -> None:
    """Leave only the channels of a layer that are kept, in place."""
    inputs, outputs = keep(bound.inputs), keep(bound.outputs)
    if bool(inputs.all()) and bool(outputs.all()):
        return
    if isinstance(layer, nn.Linear):
        _set(layer, "weight", layer.weight[outputs][:, inputs])
        layer.in_features, layer.out_features = int(inputs.sum()), int(outputs.sum())
    elif isinstance(layer, CONVOLUTIONS + TRANSPOSED):
        _cut_convolution_(layer, inputs, outputs)
    else:
        _set(layer, "weight", layer.weight)
    if bound.makes:
        _set(layer, "bias", layer.bias, outputs)
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        _set(layer, name, getattr(layer, name, None), outputs)
    if isinstance(layer, BATCH_NORMS):
        layer.num_features = int(outputs.sum())
    elif isinstance(layer, nn.GroupNorm):
        layer.num_groups = _groups_kept(inputs, layer.num_groups)
        layer.num_channels = int(outputs.sum())
    elif isinstance(layer, nn.PReLU):
        layer.num_parameters = int(outputs.sum())


def _cut_convolution_(layer: Any, inputs: Tensor, outputs: Tensor) -> None:
    groups = layer.groups
    masks = axis_masks(inputs.view(groups, -1))
    assert masks is not None
    _, columns = masks
    weight = layer.weight
    if isinstance(layer, TRANSPOSED):  # [in, out / groups, …]
        made = axis_masks(outputs.view(groups, -1))
        assert made is not None
        weight = weight[inputs][:, made[1]]
    else:  # [out, in / groups, …]
        weight = weight[outputs][:, columns]
    _set(layer, "weight", weight)
    layer.in_channels, layer.out_channels = int(inputs.sum()), int(outputs.sum())
    layer.groups = _groups_kept(inputs, groups)


def _groups_kept(channels: Tensor, groups: int) -> int:
    return int(channels.view(groups, -1).any(1).sum())


def _set(layer: Any, name: str, value: Tensor | None, rows: Tensor | None = None) -> None:
    if value is None:
        return
    value = value.detach() if rows is None else value.detach()[rows]
    if name in layer._parameters:
        learns = layer._parameters[name].requires_grad
        layer._parameters[name] = nn.Parameter(value.contiguous().clone(), requires_grad=learns)
    else:
        layer._buffers[name] = value.contiguous().clone()
