"""Fused inference operators of transformers, opened: they can be neither trained nor quantized."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch.nn import functional as F

from compress.lift.builder import GraphBuilder
from compress.lift.operators.layers import layer_norm_of
from compress.lift.operators.linear import linear_of
from compress.lift.operators.registry import Call, rule
from compress.lift.values import Symbol, Value, concrete

_MASK_OF_POSITIONS, _MASK_OF_KEYS = 0, 1  # else one for each batch and head


@rule("aten::_native_multi_head_attention")
def _multi_head_attention(builder: GraphBuilder, call: Call) -> Value:
    """`query [batch, target, embed_dim]`; returns the output and the weights, if asked for."""
    output, weights = _attend(builder, call, call["query"], call["key"], call["value"])
    if not call["need_weights"]:
        return output, None
    if call["average_attn_weights"]:
        weights = builder.call(torch.mean, weights, 1)
    return output, weights


@rule("aten::_transformer_encoder_layer_fwd")
def _encoder_layer(builder: GraphBuilder, call: Call) -> Value:
    """`src [batch, time, embed_dim]`. Source: torch, transformer_encoder_layer_forward."""
    source = call["src"]
    if source.value.is_nested:
        return NotImplemented
    present = builder.padding.get(source.node)
    if present is not None:
        absent = builder.call(torch.logical_not, present)
        call = replace(
            call, arguments={**call.arguments, "mask": absent, "mask_type": _MASK_OF_KEYS}
        )
        result = _open_layer(builder, call, source)
        builder.padding[result.node] = present
        return result
    return _open_layer(builder, call, source)


def _open_layer(builder: GraphBuilder, call: Call, source: Symbol) -> Any:

    def norm(features: Value, which: int) -> Value:
        weight, bias = call[f"norm_weight_{which}"], call[f"norm_bias_{which}"]
        return layer_norm_of(
            builder, call, features, [call["embed_dim"]], weight, bias, call["eps"]
        )

    def attend(features: Value) -> Value:
        return _attend(builder, call, features, features, features)[0]

    def feed(features: Value) -> Value:
        inner = linear_of(builder, call, features, call["ffn_weight_1"], call["ffn_bias_1"])
        inner = builder.call(F.gelu if call["use_gelu"] else F.relu, inner)
        return linear_of(builder, call, inner, call["ffn_weight_2"], call["ffn_bias_2"])

    def add(left: Value, right: Value) -> Value:
        return builder.call(torch.add, left, right)

    if call["norm_first"]:
        source = add(source, attend(norm(source, 1)))
        return add(source, feed(norm(source, 2)))
    source = norm(add(source, attend(source)), 1)
    return norm(add(source, feed(source)), 2)


@rule("aten::_nested_tensor_from_mask")
def _nest(builder: GraphBuilder, call: Call) -> Value:
    """`t [batch, time, width]` stays as it is; what is absent is masked where it would count.

    Of `mask [batch, time]` only each row's count goes in: so many are taken from the front.
    """
    dense, mask = builder.call_method("clone", call["t"]), call["mask"]
    lengths = builder.call(torch.sum, mask, 1, keepdim=True)
    ones = builder.call(torch.ones_like, mask, dtype=torch.int64)
    builder.padding[dense.node] = builder.call(
        torch.le, builder.call(torch.cumsum, ones, 1), lengths
    )
    return dense


@rule("aten::to_padded_tensor")
def _pad(builder: GraphBuilder, call: Call) -> Value:
    """Back from nested: what is absent becomes `padding`, for the mask's own size."""
    dense = call["self"]
    present = builder.padding.get(dense.node)
    if present is None or concrete(call["output_size"]) != list(dense.value.shape):
        return NotImplemented
    absent = builder.call(torch.unsqueeze, builder.call(torch.logical_not, present), -1)
    return builder.call(torch.masked_fill, dense, absent, call["padding"])


def _attend(
    builder: GraphBuilder, call: Call, query: Value, key: Value, value: Value
) -> tuple[Value, Value]:
    """Attention over `[batch, time, embed_dim]`; the output, and weights `[batch, head, t, s]`."""
    heads = call.get("num_head", call.get("num_heads"))
    width = call["embed_dim"] // heads
    projected = _project(builder, call, query, key, value)
    q, k, v = (_split_heads(builder, each, heads, width) for each in projected)
    q = builder.call(torch.mul, q, 1 / math.sqrt(width))
    scores = builder.call(torch.matmul, q, builder.call(torch.transpose, k, -2, -1))
    if call.get("mask") is not None:
        scores = _mask(builder, scores, call["mask"], call.get("mask_type"))
    weights = builder.call(torch.softmax, scores, -1)
    mixed = builder.call(torch.transpose, builder.call(torch.matmul, weights, v), 1, 2)
    mixed = builder.call(torch.flatten, mixed, 2)
    return linear_of(builder, call, mixed, call["proj_weight"], call["proj_bias"]), weights


def _project(
    builder: GraphBuilder, call: Call, query: Value, key: Value, value: Value
) -> tuple[Value, ...]:
    weight, bias, width = call["qkv_weight"], call["qkv_bias"], call["embed_dim"]
    if query is key is value:
        joint = linear_of(builder, call, query, weight, bias)
        return tuple(builder.call(torch.chunk, joint, 3, -1))
    return tuple(
        linear_of(
            builder,
            call,
            each,
            builder.call(torch.narrow, weight, 0, index * width, width),
            builder.call(torch.narrow, bias, 0, index * width, width),
        )
        for index, each in enumerate((query, key, value))
    )


def _split_heads(builder: GraphBuilder, features: Value, heads: int, width: int) -> Value:
    shape = [builder.size(features, 0), builder.size(features, 1), heads, width]
    split = builder.call_method("reshape", features, shape)
    return builder.call(torch.transpose, split, 1, 2)


def _mask(builder: GraphBuilder, scores: Value, mask: Value, kind: int | None) -> Value:
    """True, or minus infinity, where nothing may be read."""
    if kind == _MASK_OF_KEYS:
        mask = builder.call(torch.unsqueeze, builder.call(torch.unsqueeze, mask, 1), 1)
    if mask.value.dtype == torch.bool:
        return builder.call(torch.masked_fill, scores, mask, -math.inf)
    return builder.call(torch.add, scores, mask)
