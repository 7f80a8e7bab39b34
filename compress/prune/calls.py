"""A function call of the graph as rules see it, and what many rules need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from compress.prune.classes import Classes, common_shape, compact
from compress.structure import map_tensors, tensors_in


@dataclass(frozen=True)
class Call:
    """One function call of the graph.

    Attributes:
        classes: Of all channels.
        name: Of the function, without namespace or overload, such as `softmax`.
        function: Takes `args` and `kwargs`.
        args: As they were given.
        kwargs: As they were given.
        numbers: `args` with numbers in the place of tensors.
        keyword_numbers: `kwargs` with numbers in the place of tensors.
        value: What the call returned.
        reads: Of a matrix that the graph reads by itself, the numbers of what it takes, `[in]`.
    """

    classes: Classes
    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]
    numbers: tuple[Any, ...]
    keyword_numbers: Mapping[str, Any]
    value: Any
    reads: Tensor | None = None

    def argument(self, place: int, name: str, default: Any = None) -> Any:
        """Return an argument that may be given by place or by name."""
        return self.args[place] if len(self.args) > place else self.kwargs.get(name, default)

    @property
    def operands(self) -> list[Tensor]:
        """Numbers of all tensors that it is given."""
        return tensors_in([list(self.numbers), dict(self.keyword_numbers)])


def name_of(node: fx.Node) -> str:
    """Return a function's or method's bare name."""
    if isinstance(node.target, str):
        return node.target
    if isinstance(node.target, torch._ops.OpOverload):
        return node.target._schema.name.partition("::")[2]
    return str(getattr(node.target, "__name__", node.target))


def nobody(call: Call) -> Any:
    """Return the numbers of what has no channels of its own."""
    return map_tensors(call.value, lambda each: call.classes.nobody(each.shape))


def unknown(call: Call) -> Any:
    """Hold the channels that a call is given, and return nobody's."""
    for numbers in call.operands:
        call.classes.hold(numbers, f"{call.name} is not known to keep channels apart")
    return nobody(call)


def merge(classes: Classes, left: Tensor, right: Tensor, name: str) -> Tensor:
    """Return the numbers of two tensors' sum or product, and join what meets in it."""
    shape = common_shape(left.shape, right.shape)
    left, right = (each[(None,) * (len(shape) - each.dim())] for each in (left, right))
    if not compact(left).any():
        left, right = right, left
    along_left, along_right = classes.varying(left), classes.varying(right)
    why = f"{name} combines it with what cannot be cut"
    if not compact(right).any():  # nobody's: one for all channels, or one for each
        if any(right.shape[axis] > 1 for axis in along_left):
            classes.hold(left, why)
        return left.expand(shape)
    meets_left = any(right.shape[axis] > 1 for axis in along_left)
    meets_right = any(left.shape[axis] > 1 for axis in along_right)
    if meets_left or (meets_right and not along_left):
        classes.join(left, right, why)
        return (left if len(along_left) >= len(along_right) else right).expand(shape)
    if not along_right:
        return left.expand(shape)
    if not along_left:
        return right.expand(shape)
    # channels along two axes: those of a parameter give way
    if not meets_right and classes.is_of_layer(right):
        left, right = right, left
    if not meets_right and classes.is_of_layer(right):
        classes.hold(left, f"{name} crosses its channels with others")
    classes.hold(right, f"{name} crosses its channels with others")
    return left.expand(shape)


def channel_vector(classes: Classes, numbers: Tensor, axis: int, why: str) -> Tensor:
    """Return the numbers along the axis of the channels, `[channels]`; others must not differ."""
    axis %= numbers.dim()
    classes.even_out(numbers, [each for each in range(numbers.dim()) if each != axis], why)
    for _ in range(axis):
        numbers = numbers.select(0, 0)
    while numbers.dim() > 1:
        numbers = numbers.select(-1, 0)
    return numbers
