"""Stores a graph's float layers in 16 bits, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, fx, nn

from compress.quantize.half_modules import HalfConv, HalfEmbedding, HalfEmbeddingBag, HalfLinear
from compress.quantize.layers import type_name
from compress.quantize.modules import StoredLayer
from compress.quantize.packing import StoredFloat
from compress.quantize.replacing import replace_layers_
from compress.quantize.stored_recurrent import store_recurrent
from compress.spec import LayerPrecision

HalfPrecision = Literal["fp16", "bf16"]
HALVES: tuple[HalfPrecision, ...] = ("fp16", "bf16")
TYPES = {"fp16": ("float16", torch.float16), "bf16": ("bfloat16", torch.bfloat16)}
NORMALISATIONS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._NormBase)
CONVOLUTIONS = (
    nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d,
)  # fmt: skip
_SMALLEST_TENSOR = 64
"""Elements; below, widening costs more than is saved."""


def store_half_(
    graph_module: fx.GraphModule, names: Mapping[str, LayerPrecision]
) -> dict[str, str | None]:
    """Store float layers of any graph in 16 bits, in place; they compute in float32.

    Args:
        graph_module: Calls the layers; others in it may be int8.
        names: Dotted name to `fp16` or `bf16`; names of other precisions are passed over.

    Returns:
        Name to why it could not be, None where it was done.
    """
    done: dict[str, str | None] = {}
    for precision in HALVES:
        chosen = [name for name, wanted in names.items() if wanted == precision]
        done |= replace_layers_(graph_module, chosen, Narrower(precision).convert)
    return {name: done[name] for name in names if name in done}


class Narrower:
    """Stores weights in 16 bits: one that several layers share stays one."""

    def __init__(self, precision: HalfPrecision) -> None:
        self.precision = precision
        self.type_name, self.dtype = TYPES[precision]
        self._narrowed: dict[int, tuple[Tensor, Tensor]] = {}

    def convert(self, module: nn.Module) -> StoredLayer | str:
        """Return a layer's counterpart, or why it has none; see `replace_layers_`."""
        kind = type_name(module)
        if isinstance(module, NORMALISATIONS):
            return f"{kind} holds few weights, and they stay float for accuracy"
        if not all(fits(weight, self.dtype) for weight in module.parameters()):
            return f"a weight is beyond the range of {self.type_name}"
        if isinstance(module, nn.Linear):
            return HalfLinear(module, self.narrow, self.precision)
        if isinstance(module, CONVOLUTIONS):
            if module.padding_mode != "zeros":
                return f"{kind} pads with other than zeros"
            return HalfConv(module, self.narrow, self.precision)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is None:
            if isinstance(module, nn.EmbeddingBag):
                return HalfEmbeddingBag(module, self.narrow, self.precision)
            return HalfEmbedding(module, self.narrow, self.precision)
        recurrent = store_recurrent(
            module, lambda weight: StoredFloat(self.narrow(weight)), self.precision
        )
        return recurrent or f"{kind} computes in the precision that its weights are stored in"

    def narrow(self, weight: Tensor) -> Tensor:
        """Return the weight in 16 bits, a parameter where it was one; the same for the same."""
        if id(weight) not in self._narrowed:
            half = weight.detach().to(self.dtype)
            if isinstance(weight, nn.Parameter):
                half = nn.Parameter(half, requires_grad=False)
            self._narrowed[id(weight)] = (weight, half)
        return self._narrowed[id(weight)][1]

    def narrow_loose(self, model: fx.GraphModule, nodes: Sequence[fx.Node]) -> int:
        """Store tensors that the graph reads by themselves in 16 bits, too; return how many."""
        seen: dict[str, bool] = {}
        for node in nodes:
            path = str(node.target)
            if path not in seen:
                seen[path] = self._narrow_at(model, path)
            if seen[path]:
                users = list(node.users)
                with model.graph.inserting_after(node):
                    wide = model.graph.call_method("float", (node,))
                for user in users:
                    user.replace_input_with(node, wide)
        return sum(seen.values())

    def _narrow_at(self, model: fx.GraphModule, path: str) -> bool:
        owner_path, _, name = path.rpartition(".")
        owner = model.get_submodule(owner_path)
        value = tensor_at(model, path)
        if value.dtype == self.dtype:
            return True  # with the layer that holds it
        if value.numel() < _SMALLEST_TENSOR or not fits(value, self.dtype):
            return False
        half = self.narrow(value)
        if name in owner._buffers:
            owner._buffers[name] = half
        else:
            setattr(owner, name, half)
        return True


def fits(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether no number becomes infinite in another type; those that are, as in masks, stay so."""
    finite = weight.detach()[weight.isfinite()]
    return finite.numel() == 0 or float(finite.abs().max()) <= torch.finfo(dtype).max


def tensor_at(model: fx.GraphModule, path: str) -> Tensor:
    """Return the tensor at a dotted path."""
    owner, _, name = path.rpartition(".")
    value = getattr(model.get_submodule(owner), name)
    assert isinstance(value, Tensor)
    return value
