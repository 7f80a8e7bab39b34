"""Writes the FX graph, and collects the modules and parameters that it refers to."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import UnsupportedOperator
from compress.lift.guards import Guard
from compress.lift.islands import Place
from compress.lift.state import StateCells
from compress.lift.values import (
    Symbol,
    Value,
    concrete,
    map_symbols,
    symbols_in,
)
from compress.lift.weights import Weights
from compress.lift.wrapping import fold, wrap

# Python that takes numbers only: re-tracing the graph would run it on stand-ins for them
OPAQUE_TO_TRACING = frozenset(
    {math.sqrt, math.exp, math.log, math.sin, math.cos, min, max, int, float, bool, len}
)


class GraphBuilder:
    """Emits nodes and computes each with the example inputs while doing so.

    Attributes:
        graph: The FX graph so far.
        modules: Dotted name to re-formed module.
        tensors: Dotted name to parameter or buffer that the graph reads directly.
        islands: Name in the graph to what stays TorchScript there.
        accessors: Name in the graph to what reads or writes state there.
        loops: Name in the graph to a loop, and the builder of its body.
        cells: The model's state.
        scope: Dotted name of the module whose code is being walked; for messages and names.
        at: Node that is being walked.
        guards: What the graph takes for granted about its inputs.
        inputs: Nodes of the tensors that are given, in order.
        set_axes: `(input, axis)` pairs whose length the model's weights set.
        weights: The original's modules and tensors, and this graph's copies.
        constants: Name to constant tensor that the graph reads.
        padding: What stands for a nested tensor to its mask, True where there is something.
        unbiased: Call of a linear layer without bias to its input and weight.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.islands: dict[str, tuple[Place, torch.jit.ScriptModule]] = {}
        self.accessors: dict[str, torch.jit.ScriptModule] = {}
        self.loops: dict[str, tuple[nn.Module, GraphBuilder]] = {}
        self.cells = StateCells(module)
        self._running: dict[str, torch.jit.ScriptModule] = {}
        self.at = Place("")
        self.tensors: dict[str, Tensor] = {}
        self.scope = ""
        self.weights = Weights(module)
        self.guards: list[Guard] = []
        self.inputs: list[fx.Node] = []
        self.used: set[str] = set()
        self.set_axes: set[tuple[int, int]] = set()
        self._sizes: dict[tuple[fx.Node, int], Symbol] = {}
        self.unbiased: dict[fx.Node, tuple[Symbol, Symbol]] = {}
        self.padding: dict[fx.Node, Symbol] = {}
        self.constants: dict[str, Tensor] = {}

    def set_axis(self, value: Value, axis: int) -> None:
        """Notes that an axis of an input counts something of the model's own, if it is an input."""
        for symbol in symbols_in(value):
            if symbol.node in self.inputs:
                self.set_axes.add((self.inputs.index(symbol.node), axis))

    def call_island(
        self, place: Place, module: torch.jit.ScriptModule, arguments: Sequence[Value]
    ) -> Value:
        """Emits a call of a module of the original that stays as it is."""
        name = next((name for name, known in self.islands.items() if known[0] == place), "")
        if not name:
            name = place.module or self.fresh_name("island")
            self.islands[name] = (place, copy.deepcopy(module))
            self._running[name] = copy.deepcopy(module)  # it may keep state
        return self._call_torchscript(name, self._running[name], arguments)

    def call_region(
        self, place: Place, module: torch.jit.ScriptModule, arguments: Sequence[Value]
    ) -> Value:
        """Emits a call of a region of the original's code."""
        name = self.fresh_name("island")
        self.islands[name] = (place, module)
        return self._call_torchscript(name, module, arguments)

    def call_accessor(
        self, stem: str, module: torch.jit.ScriptModule, arguments: Sequence[Value]
    ) -> Value:
        """Emits a call that reads or writes state."""
        name = self.fresh_name(stem)
        self.accessors[name] = module
        return self._call_torchscript(name, module, arguments)

    def _call_torchscript(
        self, name: str, module: torch.jit.ScriptModule, arguments: Sequence[Value]
    ) -> Value:
        symbols = self.current(arguments)
        with torch.no_grad():
            result = module(*concrete(arguments))
        node = self.graph.call_module(name, self.nodes(tuple(arguments)))
        return self._wrapped(result, node, symbols)

    def for_body(self) -> GraphBuilder:
        """A builder for the body of a loop: a graph of its own, over the same modules and state."""
        inner = copy.copy(self)
        inner.graph = fx.Graph()
        inner.tensors, inner.islands, inner.accessors, inner.loops = {}, {}, {}, {}
        inner.guards, inner.inputs = [], []
        inner.unbiased, inner.padding, inner._sizes, inner.constants = {}, {}, {}, {}
        return inner

    def call_loop(
        self, module: nn.Module, inner: GraphBuilder, arguments: Sequence[Value]
    ) -> list[Value]:
        """Emits a call of a loop; lists that it fills are symbols as a whole."""
        name = self.fresh_name("loop")
        self.loops[name] = (module, inner)
        symbols = self.current(arguments)
        results = module(*concrete(arguments))
        node = self.graph.call_module(name, self.nodes(tuple(arguments)))
        after: list[Value] = []
        for index, result in enumerate(results):
            at = self.graph.call_function(getitem, (node, index))
            if isinstance(result, list):
                after.append(Symbol(result, at, from_data=True))
            else:
                after.append(self._wrapped(result, at, symbols))
        return after

    def call(self, function: Callable[..., Any], *args: Value, **kwargs: Value) -> Value:
        """Emits `function(*args, **kwargs)`, or folds it when no argument is symbolic."""
        symbols = self.current((args, kwargs))
        result = function(*concrete(args), **concrete(kwargs))
        if all(symbol.is_constant for symbol in symbols):
            return fold(result, symbols)
        node = self.graph.call_function(function, self.nodes(args), self.nodes(kwargs))
        if function in OPAQUE_TO_TRACING:
            node.meta["is_wrapped"] = True
        return self._wrapped(result, node, symbols)

    def call_method(self, name: str, receiver: Symbol, *args: Value, **kwargs: Value) -> Value:
        """Emits `receiver.name(*args, **kwargs)`, or folds it when no argument is symbolic."""
        symbols = self.current((receiver, args, kwargs))
        result = getattr(receiver.value, name)(*concrete(args), **concrete(kwargs))
        if all(symbol.is_constant for symbol in symbols):
            return fold(result, symbols)
        node = self.graph.call_method(name, self.nodes((receiver, *args)), self.nodes(kwargs))
        return self._wrapped(result, node, symbols)

    def call_module(self, path: str, *args: Value) -> Value:
        """Emits a call of the re-formed module at `path`."""
        symbols = self.current(args)
        result = self.modules[path](*concrete(args))
        node = self.graph.call_module(path, self.nodes(args))
        return self._wrapped(result, node, symbols)

    def current(self, values: Value) -> list[Symbol]:
        """The symbols in `values`, those computed anew that an in-place operator left stale."""
        symbols = symbols_in(values)
        for symbol in symbols:
            self.refresh(symbol)
        return symbols

    def refresh(self, symbol: Symbol) -> None:
        """Takes a stale view again.

        Raises:
            UnsupportedOperator: How it was made is not known.
        """
        if not symbol.stale:
            return
        if symbol.view is None:
            raise UnsupportedOperator(
                f"{self.place} reads a tensor that shares memory with one changed in place, "
                "which cannot be lifted yet; write the model without the in-place operator."
            )
        again = symbol.view.renew()
        assert isinstance(again.value, Tensor)
        symbol.adopt(again.value, again.node, again.aliases)

    def size(self, tensor: Symbol, dim: int) -> int | Symbol:
        """Length of an axis: a number for weights and constants, a node for all else."""
        assert isinstance(tensor.value, Tensor)
        dim = dim % max(tensor.value.dim(), 1)
        length = tensor.value.size(dim)
        if tensor.node is None or tensor.is_attribute:
            return length
        node = self.node_of(tensor)
        known = _made_with_length(node, dim)
        if known is not None:
            return known
        if tensor.from_data:  # what the last call left decides
            return Symbol(length, self.graph.call_method("size", (node, dim)), from_data=True)
        key = (node, dim)
        if key not in self._sizes:
            self._sizes[key] = Symbol(length, self.graph.call_method("size", (node, dim)))
        return self._sizes[key]

    def number_tensor(self, number: Value) -> Symbol:
        """A number as the 0-dimensional tensor that a trace means by it."""
        raw = concrete(number)
        kinds: dict[type, torch.dtype] = {bool: torch.bool, int: torch.int64}
        result = self.call(torch.scalar_tensor, number, dtype=kinds.get(type(raw), torch.float32))
        assert isinstance(result, Symbol)
        return result

    def fixed(self, value: Value) -> Any:
        """The value for the example inputs, kept for all inputs: what is not constant is a guard.

        Raises:
            UnsupportedOperator: The value depends on the elements of a tensor.
        """
        for symbol in symbols_in(value):
            if symbol.is_constant:
                continue
            if symbol.from_data or symbol.is_tensor:
                raise UnsupportedOperator(
                    f"{self.place} decides on the values of its data, which cannot be lifted."
                )
            assert symbol.node is not None
            assert isinstance(symbol.value, bool | int | float)
            self.guards.append(Guard(self.at, symbol.node, symbol.value))
        return concrete(value)

    def node_of(self, symbol: Symbol) -> fx.Node:
        """The node that computes a symbol; reads attributes and constants into the graph."""
        if symbol.node is None:
            if symbol.path is None:
                value = symbol.value
                assert isinstance(value, Tensor)
                name = f"constant_{len(self.constants)}"
                self.constants[name] = value.detach().clone()
            else:
                name = symbol.path
                assert isinstance(symbol.value, Tensor)
                self.tensors[name] = symbol.value
            symbol.node = self.graph.create_node("get_attr", name)
        return symbol.node

    @property
    def place(self) -> str:
        """Where in the model the walk is, for messages."""
        return f"Module '{self.scope}'" if self.scope else "The model"

    def fresh_name(self, stem: str) -> str:
        """A dotted name under the current module that nothing uses yet."""
        prefix = f"{self.scope}.{stem}" if self.scope else stem
        taken = {*self.modules, *self.weights.modules, *self.islands, *self.accessors, *self.loops}
        name, count = prefix, 0
        while name in taken:
            count += 1
            name = f"{prefix}_{count}"
        return name

    def nodes(self, value: Value) -> Any:
        """The nodes of the symbols in a structure, which stays."""
        return map_symbols(value, self.node_of)

    def _wrapped(self, result: Any, node: fx.Node, symbols: Sequence[Symbol]) -> Value:
        return wrap(self.graph, self.place, result, node, symbols)

    def parts(self) -> list[GraphBuilder]:
        """This builder, and those of the loops in its graph."""
        return [self, *(part for _, inner in self.loops.values() for part in inner.parts())]


def _made_with_length(node: fx.Node, dim: int) -> int | None:
    """The length of an axis of a tensor that was made with a number for it: `zeros([1, n])`."""
    name = getattr(node.target, "__name__", "").partition(".")[0]
    if name not in ("zeros", "ones", "full", "empty") or not isinstance(node.args[0], list | tuple):
        return None
    shape = node.args[0]
    length = shape[dim] if dim < len(shape) else None
    return length if isinstance(length, int) else None
