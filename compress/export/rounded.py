"""Which values of an int8 graph a float graph of the same outputs must round."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from compress.export.qdq import Dialect
from compress.export.scales import Scale

# what moves values without changing any; their scale is that of their input
_MOVING: frozenset[Any] = frozenset(
    {
        "reshape", "view", "transpose", "permute", "contiguous", "flatten", "squeeze", "unsqueeze",
        "expand", "t", "detach", "clone", "repeat",
        torch.reshape, torch.transpose, torch.permute, torch.flatten, torch.squeeze,
        torch.unsqueeze, torch.chunk, torch.split, torch.unbind, torch.select,
    }
)  # fmt: skip
# what reads int8 in the int8 graph, and computes in float where a dialect lets it
_FLOAT_READERS: frozenset[Any] = frozenset(
    {
        "dequantize", "size", "dim", torch.mean, "mean", torch.sigmoid, F.hardsigmoid,
        F.adaptive_avg_pool2d,
    }
)  # fmt: skip
_ACTIVATIONS = {"hardswish", "sigmoid"}


def keeps_scale(node: fx.Node, scales: Mapping[fx.Node, Scale], dialect: Dialect) -> bool:
    """Whether all values that a node gives are of its scale already, since they only moved."""
    if node.target not in _MOVING:
        return False
    if is_read_as_float(node, dialect):
        return True
    if dialect.is_fused:
        return False
    return scales[node] in [scales.get(source) for source in node.all_input_nodes]


def is_read_as_float(node: fx.Node, dialect: Dialect) -> bool:
    """Whether only float operators read a value, and the dialect does not round for those."""
    if dialect.rounds_for_floats or not node.users:
        return False
    return all(
        computes_in_float(user)
        or quantized_name(user.target) == "mul"
        or (user.target in _MOVING and is_read_as_float(user, dialect))
        for user in node.users
    )


def computes_in_float(node: fx.Node) -> bool:
    """Whether a node is of those that a dialect may let compute in float, products apart."""
    return node.target in _FLOAT_READERS or quantized_name(node.target) in _ACTIVATIONS


def quantized_name(target: Any) -> str | None:
    """Name of an operator of `torch.ops.quantized`: `conv2d_relu`."""
    if not isinstance(target, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return None
    space, _, name = str(target).partition(".")
    return name.partition(".")[0] if space == "quantized" else None
