"""Quantization-aware training: a graph that rounds as the int8 one will, and can be trained.

It is made of the graph that `quantize_static` calibrates, so it rounds at the same places, begins
with the same scales, and is converted by the same means. Between, ranges and step sizes move.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.quantize import fx_backend
from compress.quantize.drafting import Draft, Quantized, draft
from compress.quantize.engines import engine_for
from compress.quantize.fx_layers import is_int8, product_inside
from compress.quantize.fx_trained import (
    GivenRange,
    found_range,
    fresh_like,
    give_weight_,
    given_scales,
    has_free_range,
    is_observer,
    is_of_weight,
    is_per_channel,
    leader_of,
    weight_observer,
)
from compress.quantize.graph_rules import drop_idle_clips, restore_output
from compress.quantize.islands import Opaque
from compress.quantize.layers import measure_layers
from compress.quantize.qat_modules import RoundedLayer, RoundedMean, RoundedValue, RoundedWeight
from compress.quantize.qat_scales import least_squares_steps
from compress.result import Layer
from compress.spec import Backend, PtqConfig, QatConfig

INT4_LIMITS = (-8, 7)
_AVERAGING_MODULES = (
    nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
)  # fmt: skip
_AVERAGING: frozenset[Any] = frozenset(
    {
        F.avg_pool1d, F.avg_pool2d, F.avg_pool3d, F.adaptive_avg_pool1d, F.adaptive_avg_pool2d,
        F.adaptive_avg_pool3d, F.interpolate, torch.mean, "mean",
    }
)  # fmt: skip


class QatModel:
    """A lifted graph on its way to int8.

    Attributes:
        module: The graph to be trained, in float32, in eval mode. Dropout is gone from it; islands
            learn nothing.
    """

    def __init__(self, made: Draft, prepared: fx.GraphModule, config: QatConfig) -> None:
        self._draft = made
        self._prepared = prepared
        self._config = config
        self._reference = fx_backend.float_reference(prepared)
        self._ranges: dict[nn.Module, RoundedValue] = {}  # by the observer that leads there
        self.module = self._round_all()

    def find_ranges(self, batches: Iterable[Sequence[Any]]) -> None:
        """Spread the activations' steps over what they are by now, as calibration did at first."""
        observers = {
            rounded: fresh_like(observer)
            for observer, rounded in self._ranges.items()
            if has_free_range(observer)
        }
        was_training = self.module.training
        self.module.eval()
        with ExitStack() as hooks, torch.no_grad():
            for rounded, observer in observers.items():
                handle = rounded.register_forward_pre_hook(_feeding(observer))
                hooks.callback(handle.remove)
            for batch in batches:
                self.module(*batch)
        for rounded, observer in observers.items():
            if observer.histogram.seen:
                rounded.set_range(*found_range(observer))
        self.module.train(was_training)

    def freeze_steps(self, frozen: bool) -> None:
        """Say whether the step sizes of weights stay as they are, whatever the weights do."""
        for module in self.module.modules():
            if isinstance(module, RoundedWeight):
                module.factor.requires_grad_(not frozen)

    def freeze_batch_norm(self) -> None:
        """Let BatchNorm go by its running statistics, until the next call of `train`."""
        for module in self.module.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def convert(
        self, islands: Mapping[str, str], probes: Iterable[Sequence[Any]] = ()
    ) -> Quantized:
        """Return the int8 graph, with the very scales and weights of the module; call it once.

        Args:
            islands: Name to the reason why a module stays TorchScript.
            probes: Few, small batches on which each layer's error is measured, against the float
                model that was there before training.

        Raises:
            NothingToCompress: No layer was quantized.
        """
        made, backend = self._draft, self._draft.recipe.backend
        with engine_for(backend), torch.no_grad():
            self._give_back()
            converted = fx_backend.convert(self._prepared, backend)
            drop_idle_clips(converted)
            for measured in (self._reference, converted):
                made.renew_islands(measured)
            sqnr_db = measure_layers(self._reference, converted, made.layers, probes)
            done = made.finish(converted, islands, sqnr_db)
        return Quantized(done.graph_module, [self._named(layer) for layer in done.layers])

    def _round_all(self) -> fx.GraphModule:
        """Return a copy of the prepared graph that rounds where that one observes."""
        # together, so that weights which layers share stay one
        module, norms = copy.deepcopy((self._prepared, dict(self._draft.norms)))
        for node in list(module.graph.nodes):
            if node.op != "call_module":
                continue
            name = str(node.target)
            own, held = self._prepared.get_submodule(name), module.get_submodule(name)
            if isinstance(held, RoundedLayer):
                pass  # is called more than once
            elif not is_observer(own):
                if isinstance(held, Opaque):
                    module.set_submodule(name, held.held)
                elif self._is_int8(name) or name in norms:
                    module.set_submodule(name, self._rounded_layer(name, held, norms.get(name)))
            elif leader_of(own) is not own:  # relu6 and its like will clip; then it is rounded
                node.replace_all_uses_with(node.args[0])
                module.graph.erase_node(node)
            elif is_of_weight(own):
                weight = attrgetter(str(node.all_input_nodes[0].target))(module)
                module.set_submodule(name, _rounding_of(own, weight, is_int4=False))
            else:
                if own not in self._ranges:
                    self._ranges[own] = RoundedValue(*found_range(own))
                value = self._ranges[own]
                averaged = _is_average(module, node.all_input_nodes[0])
                module.set_submodule(name, RoundedMean(value) if averaged else value)
        module.delete_all_unused_submodules()
        restore_output(module, self._draft.structure)
        return module.eval()

    def _is_int8(self, name: str) -> bool:
        try:
            return is_int8(self._draft.trial.get_submodule(name))
        except AttributeError:
            return False

    def _rounded_layer(
        self, name: str, held: nn.Module, before: tuple[nn.Module, nn.Module] | None
    ) -> RoundedLayer:
        folded: Any = product_inside(held)
        layer, norm = before or (folded, None)
        rounding = None
        if self._is_int8(name):
            rounding = _rounding_of(
                weight_observer(self._prepared, name), folded.weight, is_int4=self._is_int4(name)
            )
        is_rectified = isinstance(held, nn.Sequential) and isinstance(held[-1], nn.ReLU)
        return RoundedLayer(layer, norm, rounding, is_rectified=is_rectified)

    def _is_int4(self, name: str) -> bool:
        return self._config.weight_dtype == "int4" and name not in self._draft.overrides

    def _give_back(self) -> None:
        """Put what was learned into the prepared graph."""
        prepared = self._prepared
        for node in prepared.graph.nodes:
            name = str(node.target)
            if node.op == "get_attr":
                owner, _, leaf = name.rpartition(".")
                setattr(prepared.get_submodule(owner), leaf, attrgetter(name)(self.module))
            elif node.op == "call_module":
                self._give_module_back(name, prepared.get_submodule(name))

    def _give_module_back(self, name: str, own: nn.Module) -> None:
        prepared = self._prepared
        if isinstance(own, GivenRange):
            return  # is called more than once
        if is_observer(own) and not is_of_weight(own):
            rounded = self._ranges[leader_of(own)]
            prepared.set_submodule(name, GivenRange(rounded.scale, rounded.zero_point))
            return
        learned = self.module.get_submodule(name)
        if isinstance(learned, RoundedLayer):
            weight, bias = learned.folded()
            scale = None if learned.rounding is None else learned.rounding.scale
            give_weight_(prepared, name, weight, bias, scale)
        elif isinstance(learned, RoundedWeight):
            prepared.set_submodule(name, given_scales(own, learned.scale)())
        elif isinstance(own, Opaque):
            prepared.set_submodule(name, Opaque(learned))
        else:
            prepared.set_submodule(name, learned)

    def _named(self, layer: Layer) -> Layer:
        four = layer.precision == "int8" and self._is_int4(layer.name)
        return replace(layer, precision="int4") if four else layer


def _is_average(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(graph_module.get_submodule(str(node.target)), _AVERAGING_MODULES)
    return node.target in _AVERAGING


def _rounding_of(observer: Any, weight: Tensor, *, is_int4: bool) -> RoundedWeight:
    """Return what rounds a weight: to eight bits at first as without training, to four as best."""
    axis = observer.ch_axis if is_per_channel(observer) else None
    if is_int4:
        steps = least_squares_steps(weight, INT4_LIMITS, axis)
        return RoundedWeight(weight, steps, INT4_LIMITS, axis)
    observer(weight.detach())
    limits = (observer.quant_min, observer.quant_max)
    steps = observer.calculate_qparams()[0].reshape(-1)
    return RoundedWeight(weight, steps, limits, axis)


def _feeding(observer: nn.Module) -> Callable[[nn.Module, tuple[Any, ...]], None]:
    def feed(_: nn.Module, inputs: tuple[Any, ...]) -> None:
        observer(inputs[0].float().cpu())

    return feed


def prepare_qat(
    graph_module: fx.GraphModule,
    example_inputs: Sequence[Any],
    calibration: Iterable[Sequence[Any]],
    config: QatConfig,
    *,
    backend: Backend = "x86",
    full_range: bool | None = None,
) -> QatModel:
    """Make a float graph round as its int8 one will.

    Args:
        graph_module: The float graph; left as it is.
        example_inputs: One small batch.
        calibration: Batches of inputs, read once, for the ranges to begin with.
        config: Number format and granularity of weights, overrides.
        backend: What processors the graph is for.
        full_range: Whether activations span all 8 bits; None says so of every backend but `x86`.

    Raises:
        InvalidSpec: An override that matches no layer.
        UnsupportedOperator: Conversion fails where nothing can be kept float.
    """
    if full_range is None:
        full_range = backend != "x86"
    with engine_for(backend):
        made = draft(
            graph_module,
            example_inputs,
            PtqConfig(granularity=config.granularity, overrides=config.overrides),
            full_range=full_range,
            backend=backend,
        )
        prepared = fx_backend.prepare(made.model, example_inputs, made.recipe)
        made.renew_islands(prepared)
        with torch.no_grad():
            for batch in calibration:
                prepared(*batch)
    return QatModel(made, prepared, config)
