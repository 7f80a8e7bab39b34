"""Linear layers, however they are written: `linear`, `addmm`, or `matmul` and `add`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from compress.lift.builder import GraphBuilder
from compress.lift.operators.modules import form_module
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Symbol, Value


@rule("aten::linear")
def _linear(builder: GraphBuilder, call: Call) -> Value:
    return linear_of(builder, call, call["input"], call["weight"], call["bias"])


@rule("aten::addmm")
def _addmm(builder: GraphBuilder, call: Call) -> Value:
    weight = _untransposed(builder, call["mat2"])
    if weight is None or call["alpha"] != 1 or call["beta"] != 1 or not _is_bias(call["self"]):
        return NotImplemented
    return linear_of(builder, call, call["mat1"], weight, call["self"])


@rule("aten::matmul", "aten::mm")
def _matmul(builder: GraphBuilder, call: Call) -> Value:
    left, right = call.values
    weight = _untransposed(builder, right)
    if weight is None:
        return NotImplemented
    product = linear_of(builder, call, left, weight, None)
    builder.unbiased[product.node] = (left, weight)
    return product


@rule("aten::add")
def _add_bias(builder: GraphBuilder, call: Call) -> Value:
    """`matmul(x, weight.t()) + bias`, as old traces write it, is a linear layer with a bias."""
    if call.get("alpha", 1) != 1:
        return NotImplemented
    for product, bias in (call.values[:2], call.values[1::-1]):
        if not isinstance(product, Symbol) or product.node is None or not _is_bias(bias):
            continue
        path = str(product.node.target)
        linear = builder.modules.get(path) if product.node.op == "call_module" else None
        if (
            isinstance(linear, nn.Linear)
            and linear.bias is None
            and bias.path == f"{path}.bias"
            and product.node in builder.unbiased
            and not product.node.users
            and bias.value.shape == (linear.out_features,)
        ):
            linear.bias = bias.value
            total = Symbol(product.value + bias.value, product.node)
            # whoever else reads the product reads this; nobody does, as a rule, and it goes
            features, weight = builder.unbiased[product.node]
            product.node = builder.call(F.linear, features, weight).node
            return total
    return NotImplemented


def linear_of(
    builder: GraphBuilder, call: Call, features: Symbol, weight: Symbol, bias: Symbol | None
) -> Any:
    """A linear layer: `features [..., in]`, `weight [out, in]`, `bias [out]`."""
    assert isinstance(weight.value, Tensor)
    if weight.value.dim() == 2:
        outside, inside = weight.value.shape
        path = form_module(
            builder,
            call,
            lambda: nn.Linear(inside, outside, bias=bias is not None, device="meta"),
            {"weight": weight, "bias": bias},
        )
        if path is not None:
            return builder.call_module(path, features)
    return builder.call(F.linear, features, weight, bias)


def _untransposed(builder: GraphBuilder, value: Value) -> Symbol | None:
    """The weight `[out, in]` that a matrix is the transpose of."""
    if not isinstance(value, Symbol):
        return None
    matrix = value.value
    frozen = builder.weights.is_frozen and value.is_constant and value.transposed is None
    if frozen and isinstance(matrix, Tensor) and matrix.dim() == 2 and matrix.is_floating_point():
        value.transposed = Symbol(matrix.t().contiguous())
    return value.transposed


def _is_bias(value: Value) -> bool:
    return (
        isinstance(value, Symbol)
        and value.is_attribute
        and isinstance(value.value, Tensor)
        and value.value.dim() == 1
    )


@rule("aten::t", "aten::transpose", "aten::numpy_T", "aten::permute")
def _transpose(builder: GraphBuilder, call: Call) -> Value:
    """Remembers what a transposed weight was, so that a matmul with it becomes a linear layer."""
    matrix, *dims = call.values
    if not (isinstance(matrix, Symbol) and matrix.is_attribute):
        return NotImplemented
    assert isinstance(matrix.value, Tensor)
    axes = dims[0] if call.name == "aten::permute" else dims
    if matrix.value.dim() != 2 or [axis % 2 for axis in axes] == [0, 1]:
        return NotImplemented
    result = builder.call(torch.transpose, matrix, 0, 1)
    result.transposed = matrix
    return result
