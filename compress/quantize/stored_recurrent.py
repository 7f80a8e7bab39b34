"""Recurrent layers whose weights are stored in few bits and widened on each call.

They compute in float32. A single cell is a layer whose sequence is one step long.
"""

# annotations are not postponed: torch.jit reads those of classes as they are
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from compress.quantize.modules import StoredLayer, StoredPrecision
from compress.quantize.recurrent import cell_suffixes

Store = Callable[[Tensor], nn.Module]
"""From a weight to a module that widens it: `forward(like)`."""


class StoredRecurrent(StoredLayer):
    """A recurrent layer or cell that computes in float32, its weights widened on each call.

    Attributes:
        weights: In the order of torch's operators; each is called with an activation.
    """

    def __init__(
        self,
        layer: nn.Module,
        store: Store,
        stored_as: StoredPrecision,
    ) -> None:
        """Store the weights of a float layer.

        Args:
            layer: Float.
            store: From a weight to what `forward(like)` widens it.
            stored_as: What the layer table says.
        """
        super().__init__(stored_as)
        settings: Any = layer
        is_cell = isinstance(layer, nn.RNNCellBase)
        self.weights = nn.ModuleList(store(weight.detach()) for weight in flat_weights(layer))
        self.has_bias = bool(settings.bias)
        self.layers = 1 if is_cell else int(settings.num_layers)
        self.bidirectional = not is_cell and bool(settings.bidirectional)
        self.batch_first = not is_cell and bool(settings.batch_first)
        self.is_relu = getattr(layer, "mode", getattr(layer, "nonlinearity", "")) in (
            "RNN_RELU",
            "relu",
        )
        projected = 0 if is_cell else int(settings.proj_size)
        self.hidden = int(settings.hidden_size)
        self.given = projected or self.hidden
        self.states = self.layers * (2 if self.bidirectional else 1)


class StoredLSTM(StoredRecurrent):
    """`nn.LSTM`, with or without projection."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the states of the last layer, and the last of all layers, as `nn.LSTM` does."""
        if state is None:
            batch = x.shape[0] if self.batch_first else x.shape[1]
            state = (
                torch.zeros(self.states, batch, self.given, device=x.device),
                torch.zeros(self.states, batch, self.hidden, device=x.device),
            )
        output, hidden, memory = torch.lstm(
            x,
            [state[0], state[1]],
            [weight(x) for weight in self.weights],
            self.has_bias,
            self.layers,
            0.0,
            False,
            self.bidirectional,
            self.batch_first,
        )
        return output, (hidden, memory)


class StoredGRU(StoredRecurrent):
    """`nn.GRU`."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the states of the last layer, and the last of all layers, as `nn.GRU` does."""
        if state is None:
            batch = x.shape[0] if self.batch_first else x.shape[1]
            state = torch.zeros(self.states, batch, self.hidden, device=x.device)
        weights = [weight(x) for weight in self.weights]
        return torch.gru(
            x,
            state,
            weights,
            self.has_bias,
            self.layers,
            0.0,
            False,
            self.bidirectional,
            self.batch_first,
        )


class StoredRNN(StoredRecurrent):
    """`nn.RNN` with tanh or relu."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the states of the last layer, and the last of all layers, as `nn.RNN` does."""
        if state is None:
            batch = x.shape[0] if self.batch_first else x.shape[1]
            state = torch.zeros(self.states, batch, self.hidden, device=x.device)
        weights = [weight(x) for weight in self.weights]
        if self.is_relu:
            return torch.rnn_relu(x, state, weights, self.has_bias, self.layers, 0.0, False,
                                  self.bidirectional, self.batch_first)  # fmt: skip
        return torch.rnn_tanh(x, state, weights, self.has_bias, self.layers, 0.0, False,
                              self.bidirectional, self.batch_first)  # fmt: skip


class StoredLSTMCell(StoredRecurrent):
    """`nn.LSTMCell`."""

    def forward(
        self, x: Tensor, state: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return hidden state and memory `[batch, hidden]`."""
        if state is None:
            zeros = torch.zeros(x.shape[0], self.hidden, device=x.device)
            state = (zeros, zeros)
        weights = [weight(x) for weight in self.weights]
        _, hidden, memory = torch.lstm(
            x.unsqueeze(0), [state[0].unsqueeze(0), state[1].unsqueeze(0)], weights,
            self.has_bias, 1, 0.0, False, False, False,
        )  # fmt: skip
        return hidden[0], memory[0]


class StoredGRUCell(StoredRecurrent):
    """`nn.GRUCell`."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the hidden state `[batch, hidden]`."""
        if state is None:
            state = torch.zeros(x.shape[0], self.hidden, device=x.device)
        weights = [weight(x) for weight in self.weights]
        _, hidden = torch.gru(
            x.unsqueeze(0), state.unsqueeze(0), weights, self.has_bias, 1, 0.0, False, False, False
        )
        return hidden[0]


class StoredRNNCell(StoredRecurrent):
    """`nn.RNNCell` with tanh or relu."""

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Return the hidden state `[batch, hidden]`."""
        if state is None:
            state = torch.zeros(x.shape[0], self.hidden, device=x.device)
        weights = [weight(x) for weight in self.weights]
        step, before = x.unsqueeze(0), state.unsqueeze(0)
        if self.is_relu:
            hidden = torch.rnn_relu(
                step, before, weights, self.has_bias, 1, 0.0, False, False, False
            )[1]
        else:
            hidden = torch.rnn_tanh(
                step, before, weights, self.has_bias, 1, 0.0, False, False, False
            )[1]
        return hidden[0]


_KINDS: dict[type[nn.Module], type[StoredRecurrent]] = {
    nn.LSTM: StoredLSTM, nn.GRU: StoredGRU, nn.RNN: StoredRNN,
    nn.LSTMCell: StoredLSTMCell, nn.GRUCell: StoredGRUCell, nn.RNNCell: StoredRNNCell,
}  # fmt: skip


def store_recurrent(
    layer: nn.Module, store: Store, stored_as: StoredPrecision
) -> StoredRecurrent | None:
    """Return a recurrent layer or cell with its weights stored; None for another module."""
    kind = _KINDS.get(type(layer))
    return None if kind is None else kind(layer, store, stored_as)


def flat_weights(layer: nn.Module) -> list[Tensor]:
    """Return the weights of a recurrent layer or cell in the order of torch's operators."""
    parts = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
    found = [
        getattr(layer, f"{part}{suffix}", None) for suffix in cell_suffixes(layer) for part in parts
    ]
    return [weight for weight in found if weight is not None]
