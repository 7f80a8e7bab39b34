"""Writes the FX graph, and collects the modules and parameters that it refers to."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.errors import UnsupportedOperator
from compress.lift.values import (
    ModuleRef,
    Symbol,
    Value,
    concrete,
    map_symbols,
    shares_memory,
    symbols_in,
)

Identity = tuple[int, int, torch.Size, tuple[int, ...], torch.dtype]


class GraphBuilder:
    """Emits nodes and computes each with the example inputs while doing so.

    Attributes:
        graph: The FX graph so far.
        modules: Dotted name to re-formed module.
        tensors: Dotted name to parameter or buffer that the graph reads directly.
        scope: Dotted name of the module whose code is being walked; for messages and names.
        guards: What the graph takes for granted about the sizes of its inputs.
        unbiased: Call of a linear layer without bias to its input and weight.
    """

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.graph = fx.Graph()
        self.modules: dict[str, nn.Module] = {}
        self.tensors: dict[str, Tensor] = {}
        self.scope = ""
        self._original = dict(module.named_modules(remove_duplicate=False))
        self.guards: list[str] = []
        self._parameters = dict(module.named_parameters(remove_duplicate=False))
        self._copies: dict[Identity, Tensor] = {}
        self._sizes: dict[tuple[fx.Node, int], Symbol] = {}
        self.unbiased: dict[fx.Node, tuple[Symbol, Symbol]] = {}
        self._constants: dict[str, Tensor] = {}

    def placeholder(self, name: str, value: Tensor) -> Symbol:
        """Adds an input under the original's argument name."""
        return Symbol(value, self.graph.placeholder(name))

    def call(self, function: Callable[..., Any], *args: Value, **kwargs: Value) -> Value:
        """Emits `function(*args, **kwargs)`, or folds it when no argument is symbolic."""
        symbols = self._current((args, kwargs))
        result = function(*concrete(args), **concrete(kwargs))
        if all(symbol.is_constant for symbol in symbols):
            return self._fold(result, symbols)
        node = self.graph.call_function(function, self._nodes(args), self._nodes(kwargs))
        return self._wrap(result, node, symbols)

    def call_method(self, name: str, receiver: Symbol, *args: Value, **kwargs: Value) -> Value:
        """Emits `receiver.name(*args, **kwargs)`, or folds it when no argument is symbolic."""
        symbols = self._current((receiver, args, kwargs))
        result = getattr(receiver.value, name)(*concrete(args), **concrete(kwargs))
        if all(symbol.is_constant for symbol in symbols):
            return self._fold(result, symbols)
        node = self.graph.call_method(name, self._nodes((receiver, *args)), self._nodes(kwargs))
        return self._wrap(result, node, symbols)

    def call_module(self, path: str, *args: Value) -> Value:
        """Emits a call of the re-formed module at `path`."""
        symbols = self._current(args)
        result = self.modules[path](*concrete(args))
        node = self.graph.call_module(path, self._nodes(args))
        return self._wrap(result, node, symbols)

    def _current(self, values: Value) -> list[Symbol]:
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
        key = (node, dim)
        if key not in self._sizes:
            self._sizes[key] = Symbol(length, self.graph.call_method("size", (node, dim)))
        return self._sizes[key]

    def number_tensor(self, number: Value) -> Symbol:
        """A number as the 0-dimensional tensor that a trace means by it."""
        result = self.call(torch.scalar_tensor, number)
        assert isinstance(result, Symbol)
        return result

    def fixed(self, value: Value) -> Any:
        """The value for the example inputs, kept for all inputs; what is not constant is a guard.

        Raises:
            UnsupportedOperator: The value depends on the elements of a tensor.
        """
        for symbol in symbols_in(value):
            if symbol.is_constant:
                continue
            if symbol.from_data or symbol.is_tensor:
                raise UnsupportedOperator(
                    f"{self.place} decides on the values of its data, which cannot be lifted yet."
                )
            where = self.scope or "forward"
            self.guards.append(f"{where}: {_describe(symbol.node)} = {symbol.value}")
        return concrete(value)

    def name_in(self, owner: ModuleRef, name: str, symbol: Symbol) -> str:
        """Path of an attribute; of two names of one tensor, that in the module being walked."""
        assert symbol.path is not None
        path = owner.child_path(name)
        held = owner.module._c.getattr(name) if owner.module._c.hasattr(name) else None
        if isinstance(held, Tensor) and self.own(path, held) is symbol.value:
            return path
        return symbol.path

    def is_leaf(self, path: str, attributes: frozenset[str]) -> bool:
        """Whether an original module has no submodules, and no parameters beside these."""
        module = self._original.get(path)
        if module is None:
            return False
        names = {name for name, _ in module.named_parameters()}
        return names <= attributes and not any(True for _ in module.named_children())

    def buffer_beside(self, path: str, name: str) -> Tensor | None:
        """This graph's copy of another buffer of the original module at `path`, if it has one."""
        value = dict(self._original[path].named_buffers()).get(name)
        return None if value is None else self.own(f"{path}.{name}", value)

    def attribute(self, path: str, value: Tensor) -> Symbol:
        """A parameter, buffer or tensor attribute; copied, so the original stays as it is."""
        return Symbol(self.own(path, value), path=path)

    def own(self, path: str, value: Tensor) -> Tensor:
        """This graph's copy of a tensor of the original; one copy for all names of one tensor."""
        key: Identity = (
            value.data_ptr() or id(value),
            int(value.storage_offset()),
            value.shape,
            value.stride(),
            value.dtype,
        )
        if key not in self._copies:
            copy = value.detach().clone()
            if path in self._parameters:
                # deployed files are often frozen; what is lifted must be able to learn again
                copy = nn.Parameter(copy, requires_grad=copy.is_floating_point())
            self._copies[key] = copy
        return self._copies[key]

    def node_of(self, symbol: Symbol) -> fx.Node:
        """The node that computes a symbol; reads attributes and constants into the graph."""
        if symbol.node is None:
            if symbol.path is None:
                value = symbol.value
                assert isinstance(value, Tensor)
                name = f"constant_{len(self._constants)}"
                self._constants[name] = value.detach().clone()
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
        taken = self.modules.keys() | self._original.keys()
        name, count = prefix, 0
        while name in taken:
            count += 1
            name = f"{prefix}_{count}"
        return name

    def _nodes(self, value: Value) -> Any:
        return map_symbols(value, self.node_of)

    def _fold(self, result: Any, symbols: Sequence[Symbol]) -> Value:
        aliases = self._alias_finder(symbols)

        def wrap(item: Any) -> Any:
            if isinstance(item, Tensor):
                return Symbol(item, aliases=aliases(item))
            if isinstance(item, list | tuple):
                return type(item)(wrap(inner) for inner in item)
            return item

        return wrap(result)

    def _wrap(self, result: Any, node: fx.Node, symbols: Sequence[Symbol]) -> Value:
        aliases = self._alias_finder(symbols)
        from_data = any(symbol.from_data for symbol in symbols)

        def wrap(item: Any, at: fx.Node) -> Any:
            if isinstance(item, Tensor):
                return Symbol(item, at, aliases=aliases(item))
            if isinstance(item, bool | int | float):
                return Symbol(item, at, from_data=from_data)
            if isinstance(item, list | tuple):
                parts = [
                    wrap(inner, self.graph.call_function(getitem, (at, index)))
                    for index, inner in enumerate(item)
                ]
                return parts if isinstance(item, list) else tuple(parts)
            if item is None:
                return None
            raise UnsupportedOperator(
                f"{self.place} computes a {type(item).__name__}, which cannot be lifted yet."
            )

        return wrap(result, node)

    @staticmethod
    def _alias_finder(
        symbols: Sequence[Symbol],
    ) -> Callable[[Tensor], weakref.WeakSet[Symbol] | None]:
        tensors = [symbol for symbol in symbols if isinstance(symbol.value, Tensor)]

        def find(result: Tensor) -> weakref.WeakSet[Symbol] | None:
            for symbol in tensors:
                if shares_memory(symbol.value, result):  # type: ignore[arg-type]
                    return symbol.aliases
            return None

        return find

    def finish(self, output: Value) -> fx.GraphModule:
        """Closes the graph with `output`, drops what nothing uses, and builds the module."""
        self._current(output)
        self.graph.output(self._nodes(output))
        self.graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
        used = {
            str(node.target) for node in self.graph.nodes if node.op in ("call_module", "get_attr")
        }
        held: dict[str, Any] = self.modules | self.tensors
        root = {name: held[name] for name in held if name in used}
        self.modules = {name: one for name, one in self.modules.items() if name in used}
        constants = {name: one for name, one in self._constants.items() if name in used}
        _check_names(root)
        lifted = fx.GraphModule(root | constants, self.graph)
        for name, value in constants.items():  # not of the original's state_dict
            lifted.register_buffer(name, value, persistent=False)
        return lifted.eval()


def _check_names(root: dict[str, Any]) -> None:
    for name in (path.partition(".")[0] for path in root):
        if hasattr(fx.GraphModule, name):
            raise UnsupportedOperator(f"The name '{name}' is torch.fx's own; rename the attribute.")


def _describe(value: Any) -> str:
    """An expression over sizes as a reader would write it: `gt(image.size(0), 2)`."""
    if not isinstance(value, fx.Node):
        return str(value)
    arguments = [_describe(argument) for argument in value.args]
    if value.op == "call_method":
        return f"{arguments[0]}.{value.target}({', '.join(arguments[1:])})"
    if value.op == "call_function" and getattr(value.target, "__module__", "") == "_operator":
        return f"{getattr(value.target, '__name__', value.target)}({', '.join(arguments)})"
    return value.name
