"""Makes the sizes that a graph spells fit the channels that are left of it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.lift.guards import is_check
from compress.prune.calls import name_of
from compress.prune.choosing import Kept
from compress.prune.classes import axis_masks, compact
from compress.prune.operators import ELEMENTWISE
from compress.prune.tracing import Traced
from compress.structure import tensors_in


class Unfit(Exception):
    """A node's sizes cannot be made to fit; `numbers` are of the channels whose cut is at fault."""

    def __init__(self, numbers: Tensor) -> None:
        super().__init__()
        self.numbers = numbers


class Fitter(fx.Interpreter):
    """Runs the smaller graph, and before each node makes the sizes that it spells fit."""

    def __init__(self, module: nn.Module, graph: fx.Graph, traced: Traced, kept: Kept) -> None:
        super().__init__(module, graph=graph)
        self._traced = traced
        self._kept = kept

    def run(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return super().run(*args, **kwargs)

    def run_node(self, n: fx.Node) -> Any:
        if n.op in ("call_function", "call_method") and n.args:
            self._fit(n)
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        try:
            value = getattr(self, n.op)(n.target, args, kwargs)
        except Exception as error:
            if is_check(n.target):  # of a number of channels, which is another one now
                n.graph.erase_node(n)
                return None
            raise self._unfit(n) from error
        if n.op not in ("get_attr", "output") and _shapes(value) != self._wanted(n):
            raise self._unfit(n)
        if name_of(n) in ELEMENTWISE and isinstance(value, Tensor) and self._counts(n):
            raise self._unfit(n)
        return value

    def _counts(self, node: fx.Node) -> bool:
        """Whether a number of channels is an operand, as in a mean that the model spells out."""
        numbers = [
            each for each in node.all_input_nodes if not tensors_in(self._traced.nodes[each.name])
        ]
        return any(self.env[each] != self._traced.nodes[each.name] for each in numbers)

    def _unfit(self, node: fx.Node) -> Unfit:
        """Name the nearest channels before a node, of those that are cut."""
        around = dict.fromkeys([node, *node.all_input_nodes])
        while True:
            numbers = tensors_in([self._traced.nodes[each.name] for each in around])
            cut = [each[~self._kept(each)] for each in map(compact, numbers)]
            more = [each for node in around for each in node.all_input_nodes]
            if any(len(each) for each in cut) or set(more) <= around.keys():
                return Unfit(torch.cat([each.flatten() for each in cut]))
            around.update(dict.fromkeys(more))

    def _before(self, value: Any) -> Any:
        """What an argument was for the whole graph, with numbers in the place of tensors."""
        return fx.node.map_arg(value, lambda each: self._traced.nodes[each.name])

    def _now(self, value: Any) -> Any:
        return fx.node.map_arg(value, lambda each: self.env[each])

    def _wanted(self, node: fx.Node) -> list[list[int]]:
        return [self._lengths(each) for each in tensors_in(self._traced.nodes[node.name])]

    def _masks(self, numbers: Tensor) -> list[Tensor]:
        masks = axis_masks(self._kept(numbers))
        assert masks is not None  # or it would not have been chosen
        return masks

    def _lengths(self, numbers: Tensor) -> list[int]:
        return [int(mask.sum()) for mask in self._masks(numbers)]

    def _fit(self, node: fx.Node) -> None:
        given = self._before(node.args[0])
        if not isinstance(given, Tensor):
            return
        name, arguments = name_of(node), list[Any](node.args[1:])
        if name in ("reshape", "view", "expand"):
            wrapped = len(arguments) == 1 and isinstance(arguments[0], list | tuple)
            sizes = self._sizes(node, arguments[0] if wrapped else arguments, name != "expand")
            node.args = (node.args[0], sizes) if wrapped else (node.args[0], *sizes)
        elif name == "unflatten":
            axis, sizes = arguments
            wanted, whole = self._wanted(node)[0], list(self._traced.nodes[node.name].shape)
            axis %= given.dim()
            part = slice(axis, axis + len(sizes))
            node.args = (node.args[0], axis, self._fitted(sizes, wanted[part], whole[part], True))
        elif name in ("chunk", "split", "split_with_sizes"):
            self._fit_parts(node, given)
        elif name in ("getitem", "select", "slice", "narrow"):
            self._fit_range(node, name, given)

    def _sizes(self, node: fx.Node, sizes: Sequence[Any], free: bool) -> list[Any]:
        whole = list(self._traced.nodes[node.name].shape)
        return self._fitted(sizes, self._wanted(node)[0], whole, free)

    def _fitted(
        self, sizes: Sequence[Any], wanted: list[int], whole: list[int], free: bool
    ) -> list[Any]:
        """Change those sizes that are wrong now.

        One computed from a number of channels and, perhaps, from the batch's, becomes -1; that is
        possible once.

        Args:
            sizes: Numbers and nodes.
            wanted: What they should be for the example.
            whole: What they were.
            free: Whether one may be -1.
        """
        now = self._now(list(sizes))
        free = free and -1 not in now
        fitted = list(sizes)
        for axis, (length, right) in enumerate(zip(now, wanted, strict=True)):
            if length in (-1, right):
                continue
            if free and isinstance(sizes[axis], fx.Node) and right != whole[axis]:
                fitted[axis], free = -1, False
            else:
                fitted[axis] = right
        return fitted

    def _fit_parts(self, node: fx.Node, given: Tensor) -> None:
        axis: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
        before = [each.shape[axis] for each in tensors_in(self._traced.nodes[node.name])]
        wanted = [lengths[axis] for lengths in self._wanted(node)]
        if wanted != before:
            node.target, node.kwargs = torch.split, {}
            node.args = (node.args[0], wanted, axis)

    def _fit_range(self, node: fx.Node, name: str, given: Tensor) -> None:
        source, arguments = node.args[0], list[Any](node.args[1:])
        masks = self._masks(given)
        if name == "getitem":
            index = arguments[0]
            items = list(index) if isinstance(index, tuple | list) else [index]
            axes = _axes_of(items, given.dim())
            fitted = [
                item if axis is None else self._range(item, masks[axis])
                for item, axis in zip(items, axes, strict=True)
            ]
            node.args = (source, tuple(fitted) if isinstance(index, tuple | list) else fitted[0])
            return
        axis, *arguments = self._before(arguments)
        mask = masks[axis]
        if mask.all():
            return
        if name == "select":
            node.args = (source, axis, self._range(arguments[0], mask))
            return
        start, end = arguments[:2]
        part = slice(start, start + end if name == "narrow" else end)
        node.target, node.kwargs = operator.getitem, {}
        node.args = (source, (*(slice(None),) * (axis % len(masks)), self._range(part, mask)))

    def _range(self, item: Any, mask: Tensor) -> Any:
        """Return an index or slice of an axis of which only some is left."""
        before = item
        if isinstance(item, slice):
            before = slice(*(self._before(each) for each in (item.start, item.stop, item.step)))
            if mask.all() or before.step not in (None, 1):
                return item
            start, stop, _ = before.indices(len(mask))
            return slice(int(mask[:start].sum()), int(mask[:stop].sum()))
        before = self._before(item)
        if mask.all() or not isinstance(before, int):
            return item
        return int(mask[: before % len(mask)].sum())


def _axes_of(items: Sequence[Any], rank: int) -> list[int | None]:
    """Axis that each item of an index stands for, if it stands for one."""
    taken = sum(item is not None and item is not ... for item in items)
    axes: list[int | None] = []
    axis = 0
    for item in items:
        if item is ...:
            axis = rank - (taken - axis)
            axes.append(None)
        elif item is None:
            axes.append(None)
        else:
            axes.append(axis)
            axis += 1
    return axes


def _shapes(value: Any) -> list[list[int]]:
    return [list(each.shape) for each in tensors_in(value)]
