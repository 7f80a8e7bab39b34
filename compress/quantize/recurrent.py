"""Recurrent layers in int8.

They run torch's quantized cells: products in int8, gates and states in float32. A single
cell is a layer whose sequence is one step long.
"""

# annotations are not postponed: torch.jit reads those of classes as they are
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from compress.quantize.modules import (
    StoredLayer,
    quantized_bytes,
    quantized_tensor,
    scale_of,
)
from compress.quantize.rounding import Integers

Part = Literal["ih", "hh"]
Round = Callable[[Tensor], Integers]
"""From a float32 weight `[out, in]` to int8 rows."""
_PARTS: tuple[Part, ...] = ("ih", "hh")


class _PackedCell(nn.Module):
    """Weights of one layer and direction, packed."""

    def __init__(self, parameters: Any) -> None:
        super().__init__()
        self.cell = parameters

    def linears(self) -> list[tuple[Tensor, Tensor]]:
        """Return weight and bias, of inputs and of states."""
        packed = self.cell.__getstate__()[0][4]
        return [torch.ops.quantized.linear_unpack(each) for each in packed]


class DynamicRecurrent(StoredLayer):
    """What the int8 LSTM and GRU have in common.

    Attributes:
        cells: Of each layer forwards, then backwards if bidirectional.
    """

    def __init__(
        self, layer: nn.RNNBase | nn.RNNCellBase, round_weight: Round, *, per_channel: bool
    ) -> None:
        """Round and pack the weights of a float layer.

        Args:
            layer: An LSTM without projection or a GRU, or their cells.
            round_weight: Gives int8 whose products do not overflow; see `round_without_overflow`.
            per_channel: Whether each row has a scale of its own.
        """
        super().__init__("int8")
        is_cell = isinstance(layer, nn.RNNCellBase)
        settings: Any = layer
        self.layers = 1 if is_cell else int(settings.num_layers)
        self.bidirectional = not is_cell and bool(settings.bidirectional)
        self.batch_first = not is_cell and bool(settings.batch_first)
        self.hidden = int(settings.hidden_size)
        self.directions = 2 if self.bidirectional else 1
        cells = []
        for suffix in cell_suffixes(layer):
            packed, biases = [], []
            for part in _PARTS:
                weight = getattr(layer, f"weight_{part}{suffix}").detach().float()
                bias = getattr(layer, f"bias_{part}{suffix}", None)
                bias = torch.zeros(weight.shape[0]) if bias is None else bias.detach().float()
                integers = quantized_tensor(round_weight(weight), per_channel=per_channel)
                packed.append(torch.ops.quantized.linear_prepack(integers, bias))
                biases.append(bias)
            make = torch.ops.quantized.make_quantized_cell_params_dynamic
            cells.append(_PackedCell(make(*packed, *biases, False)))
        self.cells = nn.ModuleList(cells)

    def int8_weight(self, cell: int, part: Part) -> Tensor:
        """Return `[gates * hidden, in]`, int8, of a cell's inputs or states."""
        weight: Tensor = self._linear(cell, part)[0].int_repr()
        return weight

    def weight_scale(self, cell: int, part: Part) -> Tensor:
        """Return `[gates * hidden]`, or `[]` where there is one scale for all; float32."""
        return scale_of(self._linear(cell, part)[0])

    def bias(self, cell: int, part: Part) -> Tensor:
        """Return `[gates * hidden]`, float32; zeros where the float layer had none."""
        return self._linear(cell, part)[1]

    def stored_bytes(self) -> int:
        """Bytes of weights, scales and biases, which torch stores twice."""
        linears = [each for cell in self.cells for each in cell.linears()]  # type: ignore[operator]
        return sum(quantized_bytes(weight) + 2 * int(bias.nbytes) for weight, bias in linears)

    def _linear(self, cell: int, part: Part) -> tuple[Tensor, Tensor]:
        packed = self.cells[cell]
        assert isinstance(packed, _PackedCell)
        return packed.linears()[_PARTS.index(part)]


class DynamicLSTM(DynamicRecurrent):
    """`nn.LSTM` without projection, in int8."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the states of the last layer, and the last of all layers, as `nn.LSTM` does."""
        if state is None:
            batch = x.shape[0] if self.batch_first else x.shape[1]
            zeros = torch.zeros(self.layers * self.directions, batch, self.hidden, device=x.device)
            state = (zeros, zeros)
        output, hidden, memory = torch.quantized_lstm(
            x,
            [state[0], state[1]],
            [cell.cell for cell in self.cells],
            True,
            self.layers,
            0.0,
            False,
            self.bidirectional,
            self.batch_first,
            dtype=torch.qint8,
            use_dynamic=True,
        )
        return output, (hidden, memory)


class DynamicGRU(DynamicRecurrent):
    """`nn.GRU` in int8."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the states of the last layer, and the last of all layers, as `nn.GRU` does."""
        if state is None:
            batch = x.shape[0] if self.batch_first else x.shape[1]
            state = torch.zeros(self.layers * self.directions, batch, self.hidden, device=x.device)
        answer: tuple[Tensor, Tensor] = torch.quantized_gru(
            x,
            state,
            [cell.cell for cell in self.cells],
            True,
            self.layers,
            0.0,
            False,
            self.bidirectional,
            self.batch_first,
        )
        return answer


class DynamicLSTMCell(DynamicRecurrent):
    """`nn.LSTMCell` in int8."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return hidden state and memory `[batch, hidden]`."""
        if state is None:
            zeros = torch.zeros(x.shape[0], self.hidden, device=x.device)
            state = (zeros, zeros)
        _, hidden, memory = torch.quantized_lstm(
            x.unsqueeze(0),
            [state[0].unsqueeze(0), state[1].unsqueeze(0)],
            [cell.cell for cell in self.cells],
            True,
            1,
            0.0,
            False,
            False,
            False,
            dtype=torch.qint8,
            use_dynamic=True,
        )
        return hidden[0], memory[0]


class DynamicGRUCell(DynamicRecurrent):
    """`nn.GRUCell` in int8."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the hidden state `[batch, hidden]`."""
        if state is None:
            state = torch.zeros(x.shape[0], self.hidden, device=x.device)
        _, hidden = torch.quantized_gru(
            x.unsqueeze(0),
            state.unsqueeze(0),
            [cell.cell for cell in self.cells],
            True,
            1,
            0.0,
            False,
            False,
            False,
        )
        after: Tensor = hidden[0]
        return after


def cell_suffixes(layer: nn.Module) -> list[str]:
    """What the names of a layer's weights end with, in the order of torch's operators."""
    if isinstance(layer, nn.RNNCellBase):
        return [""]
    settings: Any = layer
    directions = ("", "_reverse") if settings.bidirectional else ("",)
    return [f"_l{index}{suffix}" for index in range(settings.num_layers) for suffix in directions]
