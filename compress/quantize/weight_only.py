"""Weight-only quantization: weights are stored as integers and widened on each call.

Files shrink to a fourth or an eighth; products are those of float32. Widening costs time, most of
all where a weight is used for few rows. No calibration is needed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import NothingToCompress
from compress.quantize.drafting import Quantized
from compress.quantize.half import to_float32
from compress.quantize.islands import renew_islands
from compress.quantize.layers import nothing_done, type_name, weighted_layers
from compress.quantize.linears import linears_
from compress.quantize.modules import (
    QuantizedEmbedding,
    QuantizedEmbeddingBag,
    StoredLayer,
    WeightOnlyConv,
    WeightOnlyLinear,
)
from compress.quantize.narrowing import CONVOLUTIONS, NORMALISATIONS, store_half_
from compress.quantize.overrides import resolve_overrides
from compress.quantize.packing import PackedRows, StoredFloat
from compress.quantize.replacing import (
    measure_replaced,
    override_reason,
    reference_for,
    replace_layers_,
    stored_table,
)
from compress.quantize.rounding import round_int4, round_int8
from compress.quantize.stored_recurrent import store_recurrent
from compress.spec import PtqConfig


def quantize_weight_only(
    graph_module: fx.GraphModule,
    config: PtqConfig,
    *,
    islands: Mapping[str, str] | None = None,
    probes: Iterable[Sequence[Any]] = (),
    on_convert: Callable[[], None] = lambda: None,
) -> Quantized:
    """Store the weights of linear, convolution, recurrent and embedding layers as integers.

    Convolutions are int8 also where others are int4: their rows are short, and their weights few.

    Args:
        graph_module: The float graph; left as it is.
        config: `weight_dtype`, granularity, group size, overrides.
        islands: Name to the reason why a module stays TorchScript.
        probes: Few, small batches on which each layer's error is measured.
        on_convert: Called before weights are rounded.

    Raises:
        NothingToCompress: No layer could be quantized.
        InvalidSpec: An override that matches no layer.
    """
    model = to_float32(graph_module).graph_module.float()
    linears_(model)
    renew_islands(model, graph_module)
    batches = list(probes)
    reference = reference_for(model, batches)
    layers = weighted_layers(model)
    overrides = resolve_overrides(config.overrides, list(layers))
    precisions = {name: precision for name, (_, precision) in overrides.items()}
    on_convert()
    store = WeightStore(config, bits=4 if config.weight_dtype == "int4" else 8)
    whole = WeightStore(config)
    free = [name for name, layer in layers.items() if not layer.is_island]
    reasons = {name: override_reason(overrides, name) for name in layers}
    plain = [name for name in free if name not in precisions]
    wide = [name for name in free if precisions.get(name) == "int8"]
    reasons |= replace_layers_(model, plain, store.convert)
    reasons |= replace_layers_(model, wide, whole.convert)
    reasons |= {name: why for name, why in store_half_(model, precisions).items() if why}
    model.delete_all_unused_submodules()
    model.recompile()
    sqnr_db = measure_replaced(reference, model, graph_module, layers, batches)
    table = stored_table(layers, model, reasons, islands or {}, sqnr_db)
    if not any(layer.precision in ("int8", "int4") for layer in table):
        raise NothingToCompress(nothing_done(table, "can be stored as integers"))
    return Quantized(model, table)


class WeightStore:
    """Rounds and packs weights as one configuration says; one that layers share is packed once.

    Attributes:
        bits: 8 or 4.
    """

    def __init__(self, config: PtqConfig, *, bits: int = 8) -> None:
        self.bits = bits
        self._granularity = config.granularity
        self._group_size = config.group_size
        self._packed: dict[tuple[int, int, bool], tuple[Tensor, PackedRows]] = {}

    def convert(self, module: nn.Module) -> StoredLayer | str:
        """Return a layer with integer weights, or why there is none; see `replace_layers_`."""
        kind = type_name(module)
        if isinstance(module, NORMALISATIONS):
            return f"{kind} holds few weights, and they stay float for accuracy"
        if isinstance(module, nn.Linear):
            return WeightOnlyLinear(self.pack(module.weight), module.bias)
        if isinstance(module, CONVOLUTIONS):
            if module.padding_mode != "zeros":
                return f"{kind} pads with other than zeros"
            return WeightOnlyConv(self.pack(module.weight, bits=8), module)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is None:
            if isinstance(module, nn.EmbeddingBag):
                return QuantizedEmbeddingBag(self.pack(module.weight, by_index=True), module)
            return QuantizedEmbedding(self.pack(module.weight, by_index=True))
        recurrent = store_recurrent(module, self._stored, "int8" if self.bits == 8 else "int4")
        return recurrent or f"{kind} has no weight-only form"

    def _stored(self, weight: Tensor) -> nn.Module:
        """Biases, which are few, stay float."""
        return self.pack(weight) if weight.dim() > 1 else StoredFloat(weight.clone())

    def pack(
        self, weight: Tensor, *, bits: int | None = None, by_index: bool = False
    ) -> PackedRows:
        """Return a weight in integers.

        Args:
            weight: `[channels, ...]`.
            bits: 8 or 4; None for those of this store.
            by_index: Whether rows are looked up one by one: one scale for all would not do.
        """
        bits = bits or self.bits
        in_one = self._granularity == "per_tensor" and not by_index
        key = (id(weight), bits, in_one)
        if key not in self._packed:
            self._packed[key] = (weight, self._pack(weight.detach().float(), bits, in_one))
        return self._packed[key][1]

    def _pack(self, weight: Tensor, bits: int, in_one: bool) -> PackedRows:
        flat = weight.reshape(weight.shape[0], -1)
        length = flat.shape[1]
        if self._granularity == "per_group":
            length = min(self._group_size, length)
        length += length % (8 // bits)  # two integers to a byte
        rows = F.pad(flat, (0, -flat.shape[1] % length)).reshape(-1, length)
        if in_one:
            rows = rows.reshape(1, -1)
        rounded = round_int8(rows) if bits == 8 else round_int4(rows)
        return PackedRows(rounded, bits, tuple(weight.shape))
