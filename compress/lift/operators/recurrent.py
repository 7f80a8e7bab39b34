"""Recurrent layers and cells: nn modules again, under their dotted names."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from compress.lift.builder import GraphBuilder
from compress.lift.operators.modules import form_module
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Value

_LAYERS: dict[str, tuple[Any, dict[str, Any]]] = {
    "aten::lstm": (nn.LSTM, {}),
    "aten::gru": (nn.GRU, {}),
    "aten::rnn_tanh": (nn.RNN, {"nonlinearity": "tanh"}),
    "aten::rnn_relu": (nn.RNN, {"nonlinearity": "relu"}),
}
_CELLS: dict[str, tuple[Any, dict[str, Any]]] = {
    "aten::lstm_cell": (nn.LSTMCell, {}),
    "aten::gru_cell": (nn.GRUCell, {}),
    "aten::rnn_tanh_cell": (nn.RNNCell, {"nonlinearity": "tanh"}),
    "aten::rnn_relu_cell": (nn.RNNCell, {"nonlinearity": "relu"}),
}


@rule(*_LAYERS)
def _layer(builder: GraphBuilder, call: Call) -> Value:
    """`input [batch, time, features]` or time first; packed sequences keep the operator."""
    builder.set_axis(call["hx"], 0)  # the layers; torch reads beyond them unchecked
    if call.overload != "input" or (call["train"] and call["dropout"]):
        return NotImplemented
    kind, options = _LAYERS[call.name]
    weights: Sequence[Any] = call["params"]
    directions = 2 if call["bidirectional"] else 1
    layers, biases = call["num_layers"], call["has_biases"]
    names = _weight_names(layers, directions, biases, len(weights))
    if names is None:
        return NotImplemented
    first, recurrent = weights[0].value, weights[1].value
    gates = {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]
    hidden = first.shape[0] // gates
    projected = recurrent.shape[1] if recurrent.shape[1] != hidden else 0
    if projected:
        options = options | {"proj_size": projected}
    path = form_module(
        builder,
        call,
        lambda: kind(
            first.shape[1], hidden, layers, bias=biases, batch_first=call["batch_first"],
            dropout=call["dropout"], bidirectional=directions == 2, device="meta", **options,
        ),
        dict(zip(names, weights, strict=True)),
    )  # fmt: skip
    if path is None:
        return NotImplemented
    module = builder.modules[path]
    assert isinstance(module, nn.RNNBase)
    module._flat_weights = [getattr(module, name) for name in module._flat_weights_names]
    state = call["hx"]
    result = builder.call_module(
        path, call["input"], tuple(state) if isinstance(state, list) else state
    )
    output, after = result
    return (output, *after) if isinstance(after, tuple) else (output, after)


def _weight_names(layers: int, directions: int, biases: bool, count: int) -> list[str] | None:
    """The attributes that hold the weights, in the operator's order."""
    each = ["weight_ih", "weight_hh", *(["bias_ih", "bias_hh"] if biases else [])]
    if count == layers * directions * (len(each) + 1):
        each.append("weight_hr")
    names = [
        f"{name}_l{layer}{suffix}"
        for layer in range(layers)
        for suffix in ("", "_reverse")[:directions]
        for name in each
    ]
    return names if len(names) == count else None


@rule(*_CELLS)
def _cell(builder: GraphBuilder, call: Call) -> Value:
    """`input [batch, features]`."""
    kind, options = _CELLS[call.name]
    weight, bias = call["w_ih"], call["b_ih"]
    hidden = call["w_hh"].value.shape[1]
    path = form_module(
        builder,
        call,
        lambda: kind(
            weight.value.shape[1], hidden, bias=bias is not None, device="meta", **options
        ),
        {"weight_ih": weight, "weight_hh": call["w_hh"], "bias_ih": bias, "bias_hh": call["b_hh"]},
    )
    if path is None:
        return NotImplemented
    state = call["hx"]
    return builder.call_module(
        path, call["input"], tuple(state) if isinstance(state, list) else state
    )
