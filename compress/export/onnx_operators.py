"""ONNX's words for the operators that a reference graph is written in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def translations() -> dict[Any, Callable[..., Any]]:
    """Return operator to what writes it, as `torch.onnx.export` takes them."""
    import onnx_ir as ir
    from onnxscript import opset18

    op: Any = opset18
    types = {torch.uint8: ir.DataType.UINT8, torch.int8: ir.DataType.INT8}

    def constant(value: float | int, kind: Any) -> Any:
        return op.Constant(value=ir.tensor(value, dtype=kind))

    def quantize(x: Any, scale: float, zero_point: int, dtype: Any) -> Any:
        kind = types.get(dtype) or ir.DataType(int(dtype))
        return op.QuantizeLinear(x, constant(scale, ir.DataType.FLOAT), constant(zero_point, kind))

    def dequantize(q: Any, scale: float, zero_point: int) -> Any:
        return op.DequantizeLinear(
            q, constant(scale, ir.DataType.FLOAT), constant(zero_point, q.dtype)
        )

    def dequantize_axis(q: Any, scale: Any, zero_point: Any, axis: int) -> Any:
        return op.DequantizeLinear(q, scale, zero_point, axis=axis)

    def dynamic_linear(x: Any, weight: Any, scale: Any, bias: Any) -> Any:
        q, step, zero_point = op.DynamicQuantizeLinear(x)
        product = op.Cast(op.MatMulInteger(q, weight, zero_point), to=ir.DataType.FLOAT)
        y = op.Mul(product, op.Mul(step, scale))
        return y if bias is None else op.Add(y, bias)

    def global_average_pool(x: Any) -> Any:
        return op.GlobalAveragePool(x)

    def recurrent(
        x: Any, weight: Any, states: Any, bias: Any, hidden: Any, memory: Any, kind: str, width: int
    ) -> Any:
        directions = weight.shape[0]
        settings: dict[str, Any] = {
            "hidden_size": width,
            "direction": "bidirectional" if directions == 2 else "forward",
        }
        kept = None
        if kind == "LSTM":
            y, last, kept = op.LSTM(x, weight, states, bias, None, hidden, memory, **settings)
        elif kind == "GRU":
            y, last = op.GRU(
                x, weight, states, bias, None, hidden, linear_before_reset=1, **settings
            )
        else:
            function = "Tanh" if kind == "RNN_TANH" else "Relu"
            y, last = op.RNN(
                x, weight, states, bias, None, hidden, activations=[function] * directions,
                **settings,
            )  # fmt: skip
        if kept is None:
            kept = op.Identity(last)  # nothing reads it
        # [time, directions, batch, width]
        joined = op.Transpose(y, perm=[0, 2, 1, 3])
        shape = op.Constant(value_ints=[0, 0, -1])
        return op.Reshape(joined, shape), last, kept

    own = torch.ops.tersor
    return {
        own.quantize.default: quantize,
        own.dequantize.default: dequantize,
        own.dequantize_axis.default: dequantize_axis,
        own.dynamic_linear.default: dynamic_linear,
        own.global_average_pool.default: global_average_pool,
        own.recurrent.default: recurrent,
    }
