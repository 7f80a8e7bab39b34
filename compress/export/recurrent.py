"""Recurrent layers as one operator each, as ONNX has them: any length, any batch.

torch's exporter would unroll them for the example's length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

Weights = tuple[Tensor, Tensor, Tensor]
"""Of one layer, for both directions: of inputs, of states, and biases; see `recurrent`."""

# the order of gates in ONNX as places in torch's
_GATES = {"LSTM": [0, 3, 1, 2], "GRU": [1, 0, 2], "RNN_TANH": [0], "RNN_RELU": [0]}


@torch.library.custom_op("tersor::recurrent", mutates_args=())
def recurrent(
    x: Tensor,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor,
    hidden: Tensor | None,
    memory: Tensor | None,
    kind: str,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Run one layer as ONNX's LSTM, GRU and RNN do.

    Args:
        x: `[time, batch, in]`.
        weight: `[directions, gates * width, in]`, gates in ONNX's order.
        state_weight: `[directions, gates * width, width]`.
        bias: `[directions, 2 * gates * width]`, of inputs, then of states.
        hidden: `[directions, batch, width]`; None for zeros.
        memory: As `hidden`; of an LSTM.
        kind: `LSTM`, `GRU`, `RNN_TANH` or `RNN_RELU`.
        width: Of the states.

    Returns:
        All states `[time, batch, directions * width]`, the last, and the last memory, which is
        empty but for an LSTM.
    """
    directions = weight.shape[0]
    empty = x.new_zeros(directions, x.shape[1], width)
    hidden = empty if hidden is None else hidden
    flat = []
    for direction in range(directions):
        in_bias, state_bias = bias[direction].chunk(2)
        for each in (weight[direction], state_weight[direction], in_bias, state_bias):
            flat.append(_in_torchs_order(each, kind))
    rest = (flat, True, 1, 0.0, False, directions == 2, False)
    if kind == "LSTM":
        memory = empty if memory is None else memory
        y, last, kept = torch.lstm(x, [hidden, memory], *rest)
        return y, last, kept
    function = {"GRU": torch.gru, "RNN_TANH": torch.rnn_tanh, "RNN_RELU": torch.rnn_relu}[kind]
    y, last = function(x, hidden, *rest)
    return y, last, empty[:0]


@recurrent.register_fake
def _(
    x: Tensor,
    weight: Tensor,
    state_weight: Tensor,
    bias: Tensor,
    hidden: Tensor | None,
    memory: Tensor | None,
    kind: str,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    directions = weight.shape[0]
    last = x.new_empty(directions, x.shape[1], width)
    kept = last if kind == "LSTM" else last[:0]
    return x.new_empty(x.shape[0], x.shape[1], directions * width), last, torch.empty_like(kept)


def run_layers(
    x: Tensor,
    state: Any,
    layers: Sequence[Weights],
    kind: str,
    width: int,
    directions: int,
    batch_first: bool,
) -> Any:
    """Compute what `nn.LSTM`, `nn.GRU` and `nn.RNN` do."""
    if batch_first:
        x = x.transpose(0, 1)
    hiddens, memories = [], []
    for number, weights in enumerate(layers):
        rows = slice(number * directions, (number + 1) * directions)
        hidden = memory = None
        if state is not None and kind == "LSTM":
            hidden, memory = state[0][rows], state[1][rows]
        elif state is not None:
            hidden = state[rows]
        x, last, kept = recurrent(x, *weights, hidden, memory, kind, width)
        hiddens.append(last)
        memories.append(kept)
    y = x.transpose(0, 1) if batch_first else x
    if kind == "LSTM":
        return y, (torch.cat(hiddens), torch.cat(memories))
    return y, torch.cat(hiddens)


def is_plain(module: nn.Module) -> bool:
    """Whether a module is a recurrent layer that ONNX has a word for."""
    return isinstance(module, nn.RNNBase) and not module.proj_size


def weights_of_layers(module: nn.RNNBase) -> list[Weights]:
    """Return the weights of a float module, layer by layer."""
    found = []
    for layer in range(module.num_layers):
        suffixes = [f"_l{layer}{end}" for end in ("", "_reverse")[: 1 + module.bidirectional]]
        parts: dict[str, list[Tensor]] = {"weight_ih": [], "weight_hh": [], "bias": []}
        for suffix in suffixes:
            for part in ("weight_ih", "weight_hh"):
                weight = getattr(module, part + suffix).detach().float()
                parts[part].append(in_onnx_order(weight, module.mode))
            gates = parts["weight_ih"][-1].shape[0]
            biases = [
                getattr(module, f"bias_{part}{suffix}").detach().float()
                if module.bias
                else torch.zeros(gates)
                for part in ("ih", "hh")
            ]
            parts["bias"].append(torch.cat([in_onnx_order(each, module.mode) for each in biases]))
        weight, states, bias = (torch.stack(each) for each in parts.values())
        found.append((weight, states, bias))
    return found


def in_onnx_order(value: Tensor, kind: str) -> Tensor:
    """Return rows `[gates * width, …]` of torch with their gates in ONNX's order."""
    chunks = value.chunk(len(_GATES[kind]))
    return torch.cat([chunks[gate] for gate in _GATES[kind]])


def _in_torchs_order(value: Tensor, kind: str) -> Tensor:
    chunks = value.chunk(len(_GATES[kind]))
    order = _GATES[kind]
    return torch.cat([chunks[order.index(gate)] for gate in range(len(order))])
