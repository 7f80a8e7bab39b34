"""Layers of dynamic and weight-only graphs in operators that other formats have.

Their own packed forms are torch's alone. Here the same integers, scales and zero points are plain
tensors, widened as the dialect has it.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.export.qdq import Dialect, dynamic_linear
from compress.export.recurrent import Weights, in_onnx_order, run_layers
from compress.quantize.modules import DynamicLinear, RowTable, StoredLayer
from compress.quantize.packing import PackedRows
from compress.quantize.recurrent import DynamicRecurrent
from compress.quantize.stored_recurrent import StoredRecurrent

INT4_SUFFIX = "int4"
"""Of buffers whose values fit four bits, each in a byte of its own."""


def is_stored(module: nn.Module) -> bool:
    """Whether a module is one of the layers that are rewritten here."""
    return isinstance(module, StoredLayer)


def portable(module: nn.Module, dialect: Dialect) -> nn.Module:
    """Return a module that computes the same from plain tensors.

    A dynamic layer's activations are quantized anew on each call where the dialect has an operator
    for it, and stay float elsewhere.
    """
    if isinstance(module, DynamicLinear):
        return _Linear(module, dialect)
    if isinstance(module, DynamicRecurrent):
        return _Recurrent(module, _dynamic_weights(module, dialect), dialect)
    if isinstance(module, StoredRecurrent):
        weights = [_opened(each, dialect) for each in module.weights]
        if not module.has_bias:
            weights = _with_zero_biases(module, weights)
        if len(weights) == 4 * module.states:  # else there is a projection
            return _Recurrent(module, weights, dialect)
    return _opened(module, dialect)


def _opened(module: nn.Module, dialect: Dialect) -> nn.Module:
    """Return a copy with every packed weight inside as plain tensors."""
    if isinstance(module, PackedRows):
        return _Rows(module, dialect)
    if isinstance(module, RowTable):
        return _Table(module)
    opened = copy.copy(module)
    opened._modules = {
        name: None if child is None else _opened(child, dialect)
        for name, child in module._modules.items()
    }
    return opened


class _Rows(nn.Module):
    """`PackedRows`."""

    def __init__(self, packed: PackedRows, dialect: Dialect) -> None:
        super().__init__()
        integers = packed.integers()
        self.name = INT4_SUFFIX if packed.bits == 4 else "int8"
        self.register_buffer(self.name, integers.values.contiguous())
        self.register_buffer("scale", integers.scale.float().contiguous())
        zeros = f"zero_point_{self.name}"
        self.zeros = zeros
        self.register_buffer(zeros, integers.zero_point.to(integers.values.dtype).contiguous())
        self.shape, self.channels, self.width = packed.shape, packed.channels, packed.width
        self.widen = dialect.widen

    def forward(self, like: Tensor) -> Tensor:
        wide = self.widen(getattr(self, self.name), self.scale, getattr(self, self.zeros), 0)  # type: ignore[arg-type]
        wide = wide.reshape(self.channels, -1)
        if wide.shape[1] != self.width:
            wide = wide[:, : self.width]
        return wide.reshape(self.shape)


class _Table(nn.Module):
    """`RowTable`: looks bytes up, then widens what was found."""

    values: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, table: RowTable) -> None:
        super().__init__()
        integers = table.integers()
        entries, self.bits, self.width = table.rows.shape[0], table.bits, table.width
        values = integers.values
        if self.bits == 4:
            values = values[:, 0::2] | (values[:, 1::2] << 4)
        self.groups = values.shape[0] // entries
        self.register_buffer("values", values.reshape(entries, -1).contiguous())
        self.register_buffer("scale", integers.scale.float().reshape(entries, -1).contiguous())
        zeros = integers.zero_point.float().reshape(entries, -1).contiguous()
        self.register_buffer("zero_point", zeros)

    def forward(self, indices: Tensor) -> Tensor:
        found = self.values[indices].to(torch.float32)
        if self.bits == 4:
            high = torch.floor(found / 16)
            found = torch.stack([found - 16 * high, high], dim=-1).flatten(1)
        found = found.reshape(indices.shape[0], self.groups, -1)
        wide = (found - self.zero_point[indices].unsqueeze(-1)) * self.scale[indices].unsqueeze(-1)
        return wide.flatten(1)[:, : self.width]


class _Linear(nn.Module):
    """`DynamicLinear`."""

    weight: Tensor
    scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: DynamicLinear, dialect: Dialect) -> None:
        super().__init__()
        self.is_dynamic, self.widen = dialect.is_fused, dialect.widen
        self.by_row = layer.by_row
        weight, bias = layer.int8_weight(), layer.bias()
        self.register_buffer("weight", (weight.t() if self.is_dynamic else weight).contiguous())
        self.register_buffer("scale", layer.weight_scale().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())

    def forward(self, x: Tensor) -> Tensor:
        if self.is_dynamic and self.by_row:
            peak = x.abs().amax(-1, keepdim=True).clamp_min(1e-30)
            product: Tensor = dynamic_linear(x / peak, self.weight, self.scale, None) * peak
            return product if self.bias is None else product + self.bias
        if self.is_dynamic:
            y: Tensor = dynamic_linear(x, self.weight, self.scale, self.bias)
            return y
        return F.linear(x, self.widen(self.weight, self.scale, None, 0), self.bias)


class _Recurrent(nn.Module):
    """Recurrent layers and cells, dynamic or stored; activations stay float."""

    def __init__(
        self,
        layer: DynamicRecurrent | StoredRecurrent,
        weights: Sequence[nn.Module],
        dialect: Dialect,
    ) -> None:
        super().__init__()
        name = type(layer).__name__
        self.is_cell = name.endswith("Cell")
        relu = bool(getattr(layer, "is_relu", False))
        self.kind = (
            "LSTM" if "LSTM" in name else "GRU" if "GRU" in name else f"RNN_{_FUNCTIONS[relu]}"
        )
        self.weights = nn.ModuleList(weights)
        self.width, self.layers = layer.hidden, layer.layers
        self.directions = 1 + int(layer.bidirectional)
        self.batch_first = layer.batch_first
        self.is_fused = dialect.is_fused

    def forward(self, x: Tensor, state: Any = None) -> Any:
        if not self.is_cell:
            return self._run(x, state)
        if state is not None:
            state = (
                (state[0].unsqueeze(0), state[1].unsqueeze(0))
                if self.kind == "LSTM"
                else state.unsqueeze(0)
            )
        after = self._run(x.unsqueeze(0), state)[1]
        return (after[0][0], after[1][0]) if self.kind == "LSTM" else after[0]

    def _run(self, x: Tensor, state: Any) -> Any:
        weights = [each(x) for each in self.weights]
        if self.is_fused:
            settings = (self.kind, self.width, self.directions, self.batch_first)
            return run_layers(x, state, self._stacked(weights), *settings)
        if state is None:
            batch = x.shape[0 if self.batch_first else 1]
            zeros = x.new_zeros(self.layers * self.directions, batch, self.width)
            state = (zeros, zeros) if self.kind == "LSTM" else zeros
        rest = (weights, True, self.layers, 0.0, False, self.directions == 2, self.batch_first)
        if self.kind == "LSTM":
            y, hidden, memory = torch.lstm(x, list(state), *rest)
            return y, (hidden, memory)
        functions = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}
        return functions[self.kind](x, state, *rest)

    def _stacked(self, weights: Sequence[Tensor]) -> list[Weights]:
        ordered = [in_onnx_order(each, self.kind) for each in weights]
        cells = [ordered[at : at + 4] for at in range(0, len(ordered), 4)]
        layers = []
        for at in range(0, len(cells), self.directions):
            both = cells[at : at + self.directions]
            biases = torch.stack([torch.cat([cell[2], cell[3]]) for cell in both])
            layers.append(
                (
                    torch.stack([cell[0] for cell in both]),
                    torch.stack([cell[1] for cell in both]),
                    biases,
                )
            )
        return layers


_FUNCTIONS = {False: "TANH", True: "RELU"}


class _Widened(nn.Module):
    """An int8 weight with symmetric scales."""

    weight: Tensor
    scale: Tensor

    def __init__(self, weight: Tensor, scale: Tensor, dialect: Dialect) -> None:
        super().__init__()
        self.register_buffer("weight", weight.contiguous())
        self.register_buffer("scale", scale.contiguous())
        self.widen = dialect.widen

    def forward(self, like: Tensor) -> Tensor:
        return self.widen(self.weight, self.scale, None, 0)


class _Constant(nn.Module):
    value: Tensor

    def __init__(self, value: Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value.detach().clone())

    def forward(self, like: Tensor) -> Tensor:
        return self.value


def _dynamic_weights(layer: DynamicRecurrent, dialect: Dialect) -> list[nn.Module]:
    weights: list[nn.Module] = []
    for cell in range(len(layer.cells)):
        for part in ("ih", "hh"):
            scale = layer.weight_scale(cell, part)
            weights.append(_Widened(layer.int8_weight(cell, part), scale, dialect))
        weights += [_Constant(layer.bias(cell, part)) for part in ("ih", "hh")]
    return weights


def _with_zero_biases(layer: StoredRecurrent, weights: Sequence[nn.Module]) -> list[nn.Module]:
    gates = 4 if "LSTM" in type(layer).__name__ else 3 if "GRU" in type(layer).__name__ else 1
    zeros = torch.zeros(gates * layer.hidden)
    found: list[nn.Module] = []
    step = len(weights) // layer.states
    for at in range(0, len(weights), step):
        found += [
            *weights[at : at + 2],
            _Constant(zeros),
            _Constant(zeros),
            *weights[at + 2 : at + step],
        ]
    return found
