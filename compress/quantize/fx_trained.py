"""The seam to `torch.ao` for graphs whose scales were trained: from observers, and back to them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import ObserverBase, QConfig
from torch.ao.quantization.observer import UniformQuantizationObserverBase

from compress.quantize.fx_layers import product_inside
from compress.quantize.fx_observers import (
    EchoObserver,
    GivenChannelScales,
    GivenScale,
    RangeObserver,
)


class GivenRange(UniformQuantizationObserverBase):
    """An activation's scale and zero point, `[1]` each, that are known before."""

    def __init__(self, scale: Tensor, zero_point: Tensor) -> None:
        super().__init__(torch.quint8, torch.per_tensor_affine, quant_min=0, quant_max=255)
        self._given = (scale.detach().clone(), zero_point.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        """Hand an activation on."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        """Return scale and zero point."""
        return self._given


def is_observer(module: nn.Module) -> bool:
    """Whether a module is there to find a scale."""
    return isinstance(module, ObserverBase)


def is_of_weight(observer: Any) -> bool:
    """Whether an observer looks at a weight that a function is called with."""
    return bool(observer.dtype == torch.qint8)


def leader_of(observer: nn.Module) -> nn.Module:
    """Return the observer that finds the scale that this one has."""
    return observer._leader[0] if isinstance(observer, EchoObserver) else observer


def found_range(observer: Any) -> tuple[Tensor, Tensor]:
    """Return the scale and the zero point, `[1]` each, that an observer has found."""
    scale, zero_point = observer.calculate_qparams()
    return scale.reshape(1), zero_point.reshape(1)


def has_free_range(observer: nn.Module) -> bool:
    """Whether the range depends on values; those of sigmoid and tanh are known."""
    return isinstance(observer, RangeObserver)


def fresh_like(observer: Any) -> RangeObserver:
    """Return an observer that finds a range as this one does, and has seen nothing yet."""
    return RangeObserver(
        observer.method, observer.percentile, observer.quant_min, observer.quant_max
    )


def give_weight_(
    prepared: fx.GraphModule, name: str, weight: Tensor, bias: Tensor | None, scale: Tensor | None
) -> None:
    """Let a layer of a prepared graph have a weight, in place, and be converted with its scales.

    Args:
        prepared: With observers.
        name: Dotted name of the layer.
        weight: Of the layer, already rounded if it has scales.
        bias: Of the layer.
        scale: `[channels]`, or `[1]` for the whole; None for a layer that stays float.
    """
    holder: Any = prepared.get_submodule(name)
    layer: Any = product_inside(holder)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    if scale is not None:
        activation = holder.qconfig.activation
        given = given_scales(holder.qconfig.weight(), scale)
        for module in (holder, layer):
            module.qconfig = QConfig(activation=activation, weight=given)  # type: ignore[no-untyped-call]


def given_scales(observer: Any, scale: Tensor) -> Any:
    """Return what makes weight observers, as this one is, that know their scales before."""
    given = GivenChannelScales if is_per_channel(observer) else GivenScale
    options = {"ch_axis": observer.ch_axis} if is_per_channel(observer) else {}
    return given.with_args(
        scales=scale.detach().clone(), dtype=torch.qint8, qscheme=observer.qscheme, **options
    )


def is_per_channel(observer: Any) -> bool:
    """Whether a weight observer finds a scale for each channel."""
    return bool(observer.qscheme == torch.per_channel_symmetric)


def weight_observer(prepared: fx.GraphModule, name: str) -> Any:
    """Return a fresh observer of the weight of a layer that is going to be int8."""
    holder: Any = prepared.get_submodule(name)
    return holder.qconfig.weight()
