"""How channel numbers go through matrix products and attention."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.prune.calls import Call, channel_vector, merge, unknown
from compress.prune.classes import Classes, common_shape

_BY_FUNCTION = "what reads it is no layer with a weight of its own"


def matmul(call: Call) -> Any:
    """`matmul` and `bmm`, of matrices and batches of them."""
    left, right = call.numbers[:2]
    if left.dim() < 2 or right.dim() < 2:
        return unknown(call)
    return multiply(call.classes, left, right).expand(call.value.shape)


def multiply(classes: Classes, left: Tensor, right: Tensor) -> Tensor:
    """Return the numbers of a matrix product `[…, rows, inner] x […, inner, columns]`."""
    why = "a matrix product mixes its channels"
    if classes.varying(left, [-1]) or classes.varying(right, [-2]):
        inner = channel_vector(classes, left, -1, why), channel_vector(classes, right, -2, why)
        classes.join(*inner, why)
        rows = common_shape(left.shape[:-2], right.shape[:-2])
        return classes.nobody((*rows, left.shape[-2], right.shape[-1]))
    return merge(classes, left.narrow(-1, 0, 1), right.narrow(-2, 0, 1), "a matrix product")


def attention(call: Call) -> Any:
    """`scaled_dot_product_attention`: two products, and a mask between them."""
    query, key, value = call.numbers[:3]
    scores = multiply(call.classes, query, key.transpose(-2, -1))
    mask = call.numbers[3] if len(call.numbers) > 3 else call.keyword_numbers.get("attn_mask")
    if isinstance(mask, Tensor):
        scores = merge(call.classes, scores, mask, "an attention mask")
    return multiply(call.classes, scores, value).expand(call.value.shape)


def linear(call: Call) -> Tensor:
    """A linear layer as a function: `features [..., in]`, `weight [out, in]`, `bias [out]`."""
    features, weight = call.numbers[:2]
    return _weighted(call, features, channel_vector(call.classes, weight, 0, _BY_FUNCTION))


def addmm(call: Call) -> Tensor:
    """As `linear`, of `bias [out]`, `features [rows, in]`, `weight [in, out]`."""
    _, features, weight = call.numbers[:3]
    return _weighted(call, features, channel_vector(call.classes, weight, 1, _BY_FUNCTION))


def _weighted(call: Call, features: Tensor, made: Tensor) -> Tensor:
    if call.reads is None:
        call.classes.hold(features, _BY_FUNCTION)
    else:
        read = channel_vector(call.classes, features, -1, _BY_FUNCTION)
        call.classes.join(read, call.reads, _BY_FUNCTION)
    for bias in call.operands:
        if bias.dim() == 1:
            call.classes.join(made, bias, f"{call.name} adds what is no parameter")
    return made.expand(call.value.shape)
