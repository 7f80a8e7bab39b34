"""Makes the model of a plan: static int8 first, then dynamic int8 and 16 bits in what stayed float.

Convolutions take static int8. Linear layers take it too in a net that is mostly convolutions, where
their inputs come from int8 layers; in transformers and recurrent nets, whose activations differ in
size from token to token, they take dynamic int8, as recurrent layers and embeddings do everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from torch import fx, nn

from compress.errors import NothingToCompress
from compress.quantize import Quantized, quantize_static, to_float32
from compress.quantize.activations import Activations
from compress.quantize.dynamic import make_dynamic_
from compress.quantize.layers import weighted_layers
from compress.quantize.linears import with_linears
from compress.quantize.narrowing import CONVOLUTIONS, store_half_
from compress.quantize.replacing import measure_replaced, reference_for, stored_table
from compress.result import Layer
from compress.spec import Backend, LayerPrecision, MixedConfig, PtqConfig

Plan = Mapping[str, LayerPrecision]
_RECURRENT = (nn.RNNBase, nn.RNNCellBase)


class Composer:
    """Makes models by plan from one lifted graph and one set of calibration samples."""

    def __init__(
        self,
        graph_module: fx.GraphModule,
        example_inputs: Sequence[Any],
        calibration: Callable[[], Iterable[Sequence[Any]]],
        config: MixedConfig,
        *,
        backend: Backend,
        islands: Mapping[str, str],
        probes: Sequence[Sequence[Any]],
    ) -> None:
        """Look at the layers.

        Args:
            graph_module: The lifted graph; left as it is.
            example_inputs: One small batch.
            calibration: Gives the calibration batches, each time anew; they are run once for all
                plans.
            config: Observer and granularity.
            backend: Kind of processor.
            islands: Name to the reason why a module stays TorchScript.
            probes: Few, small batches on which each layer's error is measured.
        """
        self._lifted = with_linears(graph_module)
        self._example = example_inputs
        self._activations = Activations(calibration, counts=config.observer != "minmax")
        self._config = config
        self._backend = backend
        self._islands = islands
        self._probes = probes
        self.float_model = to_float32(self._lifted).graph_module
        self._modules = {
            name: layer.module for name, layer in weighted_layers(self.float_model).items()
        }
        self._mostly_convolutions = _bytes(self._modules, CONVOLUTIONS) > _bytes(
            self._modules, (nn.Linear, *_RECURRENT)
        )

    @property
    def names(self) -> list[str]:
        """Dotted names of the weighted layers, in order of their call."""
        return list(self._modules)

    def is_static(self, name: str) -> bool:
        """Whether a layer's int8 is static."""
        module = self._modules[name]
        if isinstance(module, nn.Linear):
            return self._mostly_convolutions
        return isinstance(module, CONVOLUTIONS)

    def build(self, plan: Plan) -> Quantized:
        """Return the model of a plan; layers that it does not name, or that cannot, stay fp32."""
        whole = [name for name, precision in plan.items() if precision == "int8"]
        base = self._make_static([name for name in whole if self.is_static(name)])
        model = base.graph_module
        dynamic = [name for name in whole if not self.is_static(name)]
        reasons = make_dynamic_(
            model,
            dynamic,
            self._example,
            source=self._lifted,
            backend=self._backend,
            granularity=self._config.granularity,
        )
        reasons |= store_half_(model, plan)
        model.delete_all_unused_submodules()
        model.recompile()
        reference = reference_for(self.float_model, self._probes)
        sqnr_db = measure_replaced(reference, model, self._lifted, self._modules, self._probes)
        layers = weighted_layers(self.float_model)
        stored = {
            layer.name: layer
            for layer in stored_table(layers, model, reasons, self._islands, sqnr_db)
        }
        return Quantized(model, [self._row(each, stored, plan, sqnr_db) for each in base.layers])

    def _make_static(self, names: Sequence[str]) -> Quantized:
        if names:
            kept = {name: "fp32" for name in self._modules if name not in set(names)}
            config = PtqConfig(
                observer=self._config.observer,
                granularity=self._config.granularity,
                overrides=kept,  # type: ignore[arg-type]
            )
            try:
                return quantize_static(
                    self._lifted,
                    self._example,
                    self._activations,
                    config,
                    backend=self._backend,
                    islands=self._islands,
                )
            except NothingToCompress:
                pass  # what was asked for has no int8 kernel, as the table will say
        return to_float32(self._lifted, self._islands)

    def _row(
        self, base: Layer, stored: Mapping[str, Layer], plan: Plan, sqnr_db: Mapping[str, float]
    ) -> Layer:
        """Return one layer's line: of what was done last to it."""
        layer = base
        if base.precision == "fp32" and base.name in stored:
            layer = stored[base.name]
        reason = layer.reason
        if layer.precision == "fp32" and plan.get(layer.name, "fp32") == "fp32":
            reason = base.reason if layer.name not in plan else "the plan keeps it fp32"
        return replace(layer, reason=reason, sqnr_db=sqnr_db.get(layer.name))


def _bytes(modules: Mapping[str, nn.Module], kinds: tuple[type[nn.Module], ...]) -> int:
    return sum(
        weight.nbytes
        for module in modules.values()
        if isinstance(module, kinds)
        for weight in module.parameters()
    )
