"""Which channels fall together: numbers that are joined into classes.

Every channel that a layer makes gets a number. A tensor's *numbers* are an integer tensor of its
shape that says of each element whose channel it is, 0 where it is nobody's. Where two channels can
only be cut together, as those that a residual adds, their numbers are joined into one class.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

NOBODY = 0


class Classes:
    """A union-find over channel numbers that works on whole tensors of them."""

    def __init__(self) -> None:
        self._parents = torch.zeros(1, dtype=torch.int64)
        self._of_layer = torch.zeros(1, dtype=torch.bool)
        self._held: list[tuple[Tensor, str]] = []

    def __len__(self) -> int:
        return len(self._parents)

    def fresh(self, count: int, *, of_layer: bool) -> Tensor:
        """Give `count` new numbers, each a class of its own, `[count]`.

        Args:
            count: How many.
            of_layer: Whether a layer makes these channels, and not merely a parameter that is
                added or multiplied: that one's elements matter only when joined with a layer's.
        """
        numbers = torch.arange(len(self), len(self) + count)
        self._parents = torch.cat([self._parents, numbers])
        self._of_layer = torch.cat([self._of_layer, torch.full((count,), of_layer)])
        return numbers

    def of(self, numbers: Tensor) -> Tensor:
        """Return the class of each number: the least number in it. Of numbers' shape."""
        return self._parents[compact(numbers)].expand(numbers.shape)

    def join(self, left: Tensor, right: Tensor, why: str) -> None:
        """Join the classes of numbers that stand at the same place of two broadcastable tensors.

        Where nobody's meets a channel, that channel is held.
        """
        left, right = (each.flatten() for each in compact_together([left, right]))
        alone = (left == NOBODY) ^ (right == NOBODY)
        if alone.any():
            self.hold((left + right)[alone], why)
        both = (left != NOBODY) & (right != NOBODY)
        left, right = left[both], right[both]
        while True:
            left, right = self._parents[left], self._parents[right]
            apart = left != right
            if not apart.any():
                return
            low, high = torch.minimum(left, right)[apart], torch.maximum(left, right)[apart]
            self._parents.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(above := self._parents[self._parents], self._parents):
                self._parents = above

    def join_along(self, numbers: Tensor, axes: Sequence[int], why: str) -> None:
        """Join all numbers along some axes of a tensor."""
        first = numbers
        for axis in axes:
            first = first.narrow(axis, 0, 1)
        self.join(numbers, first, why)

    def even_out(self, numbers: Tensor, axes: Sequence[int], why: str) -> None:
        """See to it that nothing is cut along some axes, and say why.

        A layer's channels are held; a parameter's elements are joined along the axes, so that they
        may still go together with whatever lies along the others.
        """
        uneven = self.varying(numbers, axes)
        if not uneven:
            return
        if self.is_of_layer(numbers):
            self.hold(numbers, why)
        else:
            self.join_along(numbers, uneven, why)

    def varying(self, numbers: Tensor, axes: Sequence[int] | None = None) -> list[int]:
        """Return those of the axes along which the classes differ; by default of all."""
        known = self._parents[compact(numbers)]
        wanted = range(numbers.dim()) if axes is None else [axis % numbers.dim() for axis in axes]
        return [
            axis for axis in wanted
            if known.shape[axis] > 1 and bool((known != known.narrow(axis, 0, 1)).any())
        ]  # fmt: skip

    def is_of_layer(self, numbers: Tensor) -> bool:
        """Whether any of the classes has a layer's channel in it."""
        made = torch.zeros(len(self), dtype=torch.bool)
        made[self._parents[self._of_layer]] = True
        return bool(made[self._parents[compact(numbers)]].any())

    def hold(self, numbers: Tensor, why: str) -> None:
        """Never cut these, nor what is joined with them."""
        found = torch.unique(compact(numbers))
        found = found[found != NOBODY]
        if len(found):
            self._held.append((found, why))

    def held(self) -> dict[int, str]:
        """Return each class that is never cut, and the first reason for it."""
        reasons: dict[int, str] = {}
        for numbers, why in self._held:
            for each in torch.unique(self._parents[numbers]).tolist():
                reasons.setdefault(each, why)
        return reasons

    def nobody(self, shape: Sequence[int]) -> Tensor:
        """Return the numbers of a tensor without channels."""
        return torch.zeros((), dtype=torch.int64).expand(tuple(shape))


def compact(numbers: Tensor) -> Tensor:
    """Cut axes along which one element is merely repeated in memory to length 1."""
    for axis in range(numbers.dim()):
        if numbers.stride(axis) == 0 and numbers.shape[axis] > 1:
            numbers = numbers.narrow(axis, 0, 1)
    return numbers


def compact_together(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Broadcast, but leave out axes along which none of the tensors changes."""
    shape = common_shape(*(each.shape for each in tensors))
    alike = [each.expand(shape) for each in tensors]
    for axis in range(alike[0].dim()):
        if all(each.stride(axis) == 0 or each.shape[axis] == 1 for each in alike):
            alike = [each.narrow(axis, 0, 1) for each in alike]
    return alike


def common_shape(*shapes: Sequence[int]) -> torch.Size:
    """Return the shape that tensors of these are broadcast to."""
    return torch.Size(torch.broadcast_shapes(*map(tuple, shapes)))  # type: ignore[no-untyped-call]


def axis_masks(mask: Tensor) -> list[Tensor] | None:
    """Split a mask into one for each axis, of which it is the outer product.

    Args:
        mask: What is kept of a tensor, bool, of its shape.

    Returns:
        By axis what is kept, or None where what is kept is no block of the tensor.
    """
    small = compact(mask)
    masks = [
        small.any([other for other in range(small.dim()) if other != axis]) if small.dim() > 1
        else small
        for axis in range(small.dim())
    ]  # fmt: skip
    if int(small.sum()) != math.prod(int(each.sum()) for each in masks):
        return None
    return [each.expand(length) for each, length in zip(masks, mask.shape, strict=True)]
