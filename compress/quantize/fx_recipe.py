"""What is to be done to a graph, and how `torch.ao` is told."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.ao.quantization import (
    MinMaxObserver,
    PerChannelMinMaxObserver,
    QConfig,
    QConfigMapping,
    observer,
)
from torch.nn import functional as F

from compress.quantize.fx_layers import TRANSPOSED_MODULES
from compress.quantize.fx_observers import GivenChannelScales, GivenScale, RangeObserver
from compress.spec import Backend, Granularity, Observer

_TRANSPOSED: tuple[Any, ...] = (
    *TRANSPOSED_MODULES, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
)  # fmt: skip

REDUCED_MAX = 127
"""Of activations, where kernels add pairs of products in 16 bits: 2 * 127 * 128 < 2**15."""


@dataclass(frozen=True, kw_only=True)
class StaticRecipe:
    """How a graph is quantized.

    Attributes:
        granularity: One weight scale per output channel, or one per tensor.
        observer: How activation ranges are found.
        percentile: Of the values that the observer `percentile` keeps inside the range.
        backend: What processors the graph is packed for.
        full_range: Activations span 0-255. Only where the processor has VNNI: without it the
            kernels add pairs of products in 16 bits and saturate, so 0-127 is used.
        narrow_layers: Dotted names of convolutions whose weights get 7 bits under the full range;
            see `saturating_depthwise`.
        last_layers: Dotted names of layers whose outputs no int8 product takes in: nothing can
            overflow after them, so they span 0-255 in any case.
        float_layers: Dotted names of the modules that stay float.
        weight_scales: Dotted name to the scales, `[out]` or `[1]`, that a layer's weights have
            been rounded for; of the others they are found.
    """

    granularity: Granularity = "per_channel"
    observer: Observer = "histogram"
    percentile: float = 99.99
    backend: Backend = "x86"
    full_range: bool = False
    narrow_layers: frozenset[str] = frozenset()
    last_layers: frozenset[str] = frozenset()
    float_layers: frozenset[str] = frozenset()
    weight_scales: Mapping[str, Tensor] = field(default_factory=dict)

    def weight_limits(self, name: str) -> tuple[int, int]:
        """Return the least and greatest integer of a layer's weights."""
        return (-64, 63) if self.full_range and name in self.narrow_layers else (-128, 127)


def mapping_for(recipe: StaticRecipe, graph_module: fx.GraphModule) -> QConfigMapping:
    wide: Any = RangeObserver.with_args(method=recipe.observer, percentile=recipe.percentile)
    activation = wide if recipe.full_range else wide.with_args(quant_max=REDUCED_MAX)
    weight = _weight_observer(recipe)
    per_tensor = _weight_observer(replace(recipe, granularity="per_tensor"))
    # sigmoid, tanh and hardsigmoid have known ranges: torch's own table says which
    mapping = _with_known_ranges(_qconfig(activation=activation, weight=weight))
    for operator in _TRANSPOSED:
        mapping.set_object_type(operator, _qconfig(activation=activation, weight=per_tensor))
    special = recipe.last_layers | recipe.narrow_layers | recipe.weight_scales.keys()
    for name in sorted(special):
        is_wide = recipe.full_range or name in recipe.last_layers
        transposed = isinstance(graph_module.get_submodule(name), TRANSPOSED_MODULES)
        chosen = per_tensor if transposed else _weight_observer(recipe, name)
        mapping.set_module_name(name, _qconfig(wide if is_wide else activation, chosen))
    for name in sorted(recipe.float_layers):
        mapping.set_module_name(name, None)
    return mapping


def _weight_observer(recipe: StaticRecipe, name: str = "") -> Any:
    """Return what makes observers of the weights of a layer, or of layers in general."""
    low, high = recipe.weight_limits(name)
    options: dict[str, Any] = {"dtype": torch.qint8}
    if (low, high) != (-128, 127):
        options |= {"quant_min": low, "quant_max": high}
    is_per_channel = recipe.granularity == "per_channel"
    if name in recipe.weight_scales:
        scales = recipe.weight_scales[name]
        given = GivenChannelScales if is_per_channel else GivenScale
        return given.with_args(
            scales=scales,
            qscheme=torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric,
            **options,
        )
    if is_per_channel:
        return PerChannelMinMaxObserver.with_args(qscheme=torch.per_channel_symmetric, **options)
    return MinMaxObserver.with_args(qscheme=torch.per_tensor_symmetric, **options)


def find_weight_scales(
    graph_module: fx.GraphModule, recipe: StaticRecipe, names: Iterable[str]
) -> dict[str, Tensor]:
    """Return the scales, `[out]` or `[1]`, that layers' weights are going to have."""
    scales = {}
    for name in names:
        observer = _weight_observer(recipe, name)()
        weight = graph_module.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        observer(weight.detach())
        scales[name] = observer.calculate_qparams()[0]
    return scales


def _qconfig(activation: Any, weight: Any) -> QConfig:
    return QConfig(activation=activation, weight=weight)  # type: ignore[no-untyped-call]


def _with_known_ranges(qconfig: QConfig) -> QConfigMapping:
    mapping = QConfigMapping().set_global(qconfig)
    known = {
        "0to1": (nn.Sigmoid, torch.sigmoid, "sigmoid", "sigmoid_", nn.Hardsigmoid, F.hardsigmoid,
                 "hardsigmoid", "hardsigmoid_"),
        "neg1to1": (nn.Tanh, torch.tanh, "tanh", "tanh_"),
    }  # fmt: skip
    for span, operators in known.items():
        fixed = getattr(observer, f"default_fixed_qparams_range_{span}_observer")
        for operator in operators:
            mapping.set_object_type(operator, _qconfig(activation=fixed, weight=qconfig.weight))
    return mapping
