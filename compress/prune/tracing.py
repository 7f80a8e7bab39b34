"""Runs a lifted graph once and follows every channel from where it is made to its readers."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.prune.calls import Call, name_of
from compress.prune.classes import Classes
from compress.prune.layers import Bound, bind
from compress.prune.operators import after
from compress.structure import map_tensors, tensors_in

_LARGEST_PARAMETER = 2**20
"""Elements of one that the graph reads by itself; a larger one is not followed, and not cut."""
_PASSING = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity, nn.PReLU)
_WHOLE = "the model's answer holds it"


@dataclass(frozen=True)
class Matrix:
    """A weight of a linear function.

    Attributes:
        axis: Along which lie the channels that it makes.
        outputs: Their numbers, `[out]`.
        inputs: Numbers of those that it reads, `[in]`; None where it is used in parts.
    """

    axis: int
    outputs: Tensor
    inputs: Tensor | None


@dataclass
class Traced:
    """Where channels are.

    Attributes:
        classes: Which of them fall together.
        layers: By name of those that the graph calls.
        attributes: Numbers of parameters and buffers that the graph reads by themselves.
        matrices: Of those of them that are weights of linear functions.
        makers: By name of layer or parameter, the numbers of the channels that it makes.
        nodes: By node's name its value, with numbers in the place of tensors.
    """

    classes: Classes = field(default_factory=Classes)
    layers: dict[str, Bound] = field(default_factory=dict)
    attributes: dict[str, Tensor] = field(default_factory=dict)
    matrices: dict[str, Matrix] = field(default_factory=dict)
    makers: dict[str, Tensor] = field(default_factory=dict)
    nodes: dict[str, Any] = field(default_factory=dict)

    def sites(self) -> list[Tensor]:
        """Numbers of everything that must stay a block, and not become empty."""
        pairs: list[Bound | Matrix] = [*self.layers.values(), *self.matrices.values()]
        found = [each for pair in pairs for each in (pair.inputs, pair.outputs) if each is not None]
        return [*found, *self.attributes.values(), *tensors_in(list(self.nodes.values()))]


def trace(graph_module: fx.GraphModule, example_inputs: Sequence[Any]) -> Traced:
    """Follow the channels of a lifted graph; it is not changed.

    Args:
        graph_module: In eval mode.
        example_inputs: One value for each argument.
    """
    tracer = _Tracer(copy.deepcopy(graph_module))
    with torch.no_grad():
        tracer.run(*map_tensors(list(example_inputs), Tensor.clone))
    return tracer.traced


class _Tracer(fx.Interpreter):
    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.traced = Traced()
        self._shared = _shared(graph_module)

    def run_node(self, n: fx.Node) -> Any:
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        value = getattr(self, n.op)(n.target, args, kwargs)
        self.traced.nodes[n.name] = self._numbers(n, args, kwargs, value)
        return value

    def _numbers(
        self, node: fx.Node, args: tuple[Any, ...], kwargs: Mapping[str, Any], value: Any
    ) -> Any:
        classes = self.traced.classes
        numbers: tuple[Any, ...] = fx.node.map_arg(node.args, self._numbers_of)
        keywords: dict[str, Any] = fx.node.map_arg(node.kwargs, self._numbers_of)
        if node.op == "output":
            for each in tensors_in(list(numbers)):
                classes.hold(each, _WHOLE)
            return None
        if node.op == "get_attr" and isinstance(value, Tensor):
            return self._attribute(node, value)
        if node.op == "call_module":
            return self._layer(str(node.target), numbers, keywords, value)
        if node.op in ("call_function", "call_method"):
            call = Call(
                classes, name_of(node), _function(node), args, kwargs, numbers, keywords, value,
                self._reads(node),
            )  # fmt: skip
            return after(call)
        return map_tensors(value, lambda each: classes.nobody(each.shape))

    def _numbers_of(self, node: fx.Node) -> Any:
        return self.traced.nodes[node.name]

    def _attribute(self, node: fx.Node, value: Tensor) -> Tensor:
        classes, name = self.traced.classes, str(node.target)
        known = self.traced.attributes.get(name)
        if known is not None:
            return known
        if not value.is_floating_point() or name in self._shared:
            return classes.nobody(value.shape)
        axis = _weight_axis(node) if value.dim() == 2 else None
        if axis is not None:
            made = classes.fresh(value.shape[axis], of_layer=True)
            whole = all(name_of(user) in ("linear", "addmm") for user in node.users)
            read = classes.fresh(value.shape[1 - axis], of_layer=False) if whole else None
            self.traced.makers[name] = made
            self.traced.matrices[name] = Matrix(axis, made, read)
            numbers = (made.unsqueeze(1) if axis == 0 else made).expand(value.shape)
        elif 0 < value.numel() <= _LARGEST_PARAMETER:
            numbers = classes.fresh(value.numel(), of_layer=False).view(value.shape)
        else:
            return classes.nobody(value.shape)
        self.traced.attributes[name] = numbers
        return numbers

    def _reads(self, node: fx.Node) -> Tensor | None:
        names = [str(each.target) for each in node.all_input_nodes if each.op == "get_attr"]
        found = [self.traced.matrices[name] for name in names if name in self.traced.matrices]
        return found[0].inputs if len(found) == 1 else None

    def _layer(
        self,
        name: str,
        numbers: tuple[Any, ...],
        keywords: Mapping[str, Any],
        value: Any,
    ) -> Any:
        classes, layer = self.traced.classes, self.submodules[name]
        kind = type(layer).__name__
        given = numbers[0] if len(numbers) == 1 and not keywords else None
        if isinstance(given, Tensor) and name not in self._shared:
            bound = bind(classes, layer, given, self.traced.layers.get(name))
            if bound is not None:
                self.traced.layers[name] = bound
                if not bound.makes:
                    return given
                self.traced.makers[name] = bound.outputs
                shape = [1] * value.dim()
                shape[bound.axis] = -1
                return bound.outputs.view(shape).expand(value.shape)
            if isinstance(layer, _PASSING):
                return given
            if isinstance(layer, nn.LayerNorm):
                axes = range(given.dim() - len(layer.normalized_shape), given.dim())
                classes.even_out(given, axes, "LayerNorm weighs its channels against each other")
                return given
        why = f"{kind} is not known to keep channels apart"
        if name in self._shared:
            why = f"{name} shares its weights with another layer"
        for each in tensors_in([list(numbers), dict(keywords)]):
            classes.hold(each, why)
        return map_tensors(value, lambda each: classes.nobody(each.shape))


def _weight_axis(node: fx.Node) -> int | None:
    """Which axis of a parameter makes channels, where functions use it, or parts, as a weight."""
    axes: set[int | None] = set()
    for user in node.users:
        name = name_of(user) if user.op == "call_function" else ""
        if name in ("linear", "addmm"):
            axis = 0 if name == "linear" else 1
            axes.add(axis if user.args[1 + axis] is node and user.args.count(node) == 1 else None)
        else:
            axes.add(_weight_axis(user) if name in ("chunk", "split", "getitem") else None)
    return axes.pop() if len(axes) == 1 else None


def _function(node: fx.Node) -> Any:
    if callable(node.target):
        return node.target
    method = str(node.target)
    return lambda given, *args, **kwargs: getattr(given, method)(*args, **kwargs)


def _shared(graph_module: fx.GraphModule) -> set[str]:
    """Names of layers and parameters whose weights stand in several places."""
    named = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    counts = Counter(id(value) for _, value in named)
    read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}
    found = set()
    for name, value in named:
        owner = name.rpartition(".")[0]
        if counts[id(value)] > 1 or name in read:
            found.add(owner)
        if counts[id(value)] > 1:
            found.add(name)
    return found
