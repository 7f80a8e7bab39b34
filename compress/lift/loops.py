"""Loops whose length hangs on the input: the body is lifted once, and runs as often as it must.

A loop of fixed length unrolls. One over the length of a sequence would then hold for that length
alone, so it becomes a module that calls the lifted body: its weights train, its length is free.
"""

from __future__ import annotations

import itertools
import linecache
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import torch
from torch import Tensor, fx, nn

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.closing import close
from compress.lift.operators import write_tensor
from compress.lift.values import Parts, Symbol, Value, map_symbols

_KINDS: dict[type, str] = {bool: "bool", int: "int", float: "float"}
_NUMBERS = itertools.count()


class LoopModule(nn.Module):
    """Calls `body` a number of times; each loop has a class of its own with a `forward`."""

    def __init__(self, body: fx.GraphModule) -> None:
        super().__init__()
        self.body = body

    def with_body(self, body: fx.GraphModule) -> LoopModule:
        """The same loop around another body."""
        return type(self)(body)


def is_loop(module: nn.Module) -> TypeGuard[LoopModule]:
    """Whether a module of a lifted graph is a loop around a graph of its own."""
    return isinstance(module, LoopModule)


def is_counted(body: torch._C.Block) -> bool:
    """Whether a loop ends by its count alone, as `for` loops without `break` do."""
    condition = next(iter(body.outputs()))
    value: Any = condition.toIValue()
    return condition.node().kind() == "prim::Constant" and value is True


def lift_loop(
    builder: GraphBuilder,
    body: torch._C.Block,
    trips: Value,
    carried: Sequence[Value],
    frame: dict[str, Value],
    run: Callable[[GraphBuilder, dict[str, Value]], None],
) -> list[Value]:
    """Lift a counted loop, and emit it as one call.

    Args:
        builder: Of the graph that the loop stands in.
        body: The loop's block: takes the index and what is carried, returns whether to go on and
            what is carried.
        trips: How often it runs.
        carried: What is carried into the first step.
        frame: Values by name; lists that the body appends to are replaced.
        run: Walks the body with a builder of its own, in a frame of its own.

    Returns:
        What is carried out of the last step.

    Raises:
        UnsupportedOperator: The body does what a module cannot be given or give back.
    """
    inner = builder.for_body()
    captured = _Captured(builder, inner)
    inside = captured.copy_frame(frame, set(_names_read(body)))
    names = [value.debugName() for value in body.inputs()]
    inside[names[0]] = captured.add_input("index", 0)
    structure = tuple(carried)
    carried = _leaves(structure)
    inputs = [
        captured.add_input(f"carried_{number}", _raw(value)) for number, value in enumerate(carried)
    ]
    entered = _rebuild(structure, iter(inputs))
    # a list that fills up is carried by name, though it is one list all the while
    filling = {at: captured.add_list(value) for at, value in enumerate(structure) if value == []}
    inside.update(zip(names[1:], entered, strict=True))
    inside.update({names[at + 1]: mine for at, mine in filling.items()})
    run(inner, inside)
    ended = [inside[value.debugName()] for value in body.outputs()][1:]
    if any(ended[at] is not mine for at, mine in filling.items()):
        raise UnsupportedOperator("A loop begins a list anew in each step.")
    results = _leaves([[] if at in filling else value for at, value in enumerate(ended)])
    if len(results) != len(carried):
        raise UnsupportedOperator("A loop carries another structure after a step than before.")
    for before, after in zip(carried, results, strict=True):
        _check_same_kind(before, after)
    written = captured.written()
    appended = captured.appended()
    items = [item for _, added in appended for item in added]
    graph_module = close(
        inner, (*results, *(captured.inside[id(symbol)] for symbol in written), *items)
    )
    module = _make(
        graph_module,
        [*carried, *captured.read],
        [f"carried_{number}" for number in range(len(carried))]
        + [captured.name_of(symbol) for symbol in written],
        [len(added) for _, added in appended],
    )
    after = builder.call_loop(module, inner, [trips, *carried, *captured.read])
    for symbol, value in zip(written, after[len(carried) :], strict=False):
        write_tensor(builder, "a loop", symbol, value)
    full: list[tuple[list[Any], Value]] = []
    for (original, _), collected in zip(
        appended, after[len(carried) + len(written) :], strict=True
    ):
        for name, value in frame.items():
            if value is original:
                frame[name] = collected
        full.append((original, collected))
    return [
        next((filled for original, filled in full if original is before), now)
        for before, now in zip(structure, _rebuild(structure, iter(after)), strict=True)
    ]


class _Captured:
    """What a loop's body reads from outside, and what it has inside for it."""

    def __init__(self, outer: GraphBuilder, inner: GraphBuilder) -> None:
        self.read: list[Symbol] = []
        self.inside: dict[int, Symbol] = {}
        self._outer = outer
        self._inner = inner
        self._placeholders: dict[int, fx.Node] = {}
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._kept: list[Any] = []  # so that no id is used twice

    def add_input(self, name: str, value: Any) -> Symbol:
        """Give the body an input. A number is another in each step: nothing may hang on it."""
        is_tensor = isinstance(value, Tensor)
        kind = list[Tensor] if isinstance(value, list) else type(value)
        if not is_tensor and type(value) not in (*_KINDS, list):
            raise UnsupportedOperator("A loop carries nothing, or a text, from step to step.")
        node = self._inner.graph.placeholder(name, None if is_tensor else kind)
        return Symbol(value, node, from_data=not is_tensor)

    def add_list(self, value: list[Any]) -> list[Any]:
        """Give the body a list of the outside, to append to."""
        mine = self._capture(value)
        assert isinstance(mine, list)
        return mine

    def copy_frame(self, frame: Mapping[str, Value], names: set[str]) -> dict[str, Value]:
        """Return the frame with what the body reads replaced by what it has inside for it."""
        return {
            name: self._capture(value) if name in names else value for name, value in frame.items()
        }

    def written(self) -> list[Symbol]:
        """Tensors of the outside that the body wrote to."""
        for mine in self.inside.values():
            self._inner.refresh(mine)
        changed = [s for s in self.read if self.inside[id(s)].node is not self._placeholders[id(s)]]
        own = {id(symbol) for symbol in self.read}
        for key, mine in self.inside.items():
            if key not in own and mine.node is not None and mine.node.op != "get_attr":
                raise UnsupportedOperator("A loop writes to a weight or a constant.")
        return changed

    def appended(self) -> list[tuple[list[Any], list[Symbol]]]:
        """Lists of the outside, empty before, and what one step appends to each."""
        found = []
        for original, mine in self._lists:
            if len(mine) == len(original):
                continue
            if original or not all(isinstance(i, Symbol) and i.is_tensor for i in mine):
                raise UnsupportedOperator("A loop appends to a list that is not empty before it.")
            found.append((original, mine))
        return found

    def name_of(self, symbol: Symbol) -> str:
        """The body's input for a symbol of the outside."""
        return str(self._placeholders[id(symbol)].target)

    def _capture(self, value: Value) -> Value:
        if isinstance(value, Parts):
            return Parts([], self._own(value.whole), self._own(value.length))
        if isinstance(value, list):
            known = next((mine for original, mine in self._lists if original is value), None)
            if known is None:
                known = [self._capture(item) for item in value]
                self._lists.append((value, known))
            return known
        return map_symbols(value, self._own)

    def _own(self, symbol: Symbol) -> Symbol:
        if id(symbol) not in self.inside:
            self._outer.refresh(symbol)
            if symbol.is_attribute:
                mine = Symbol(symbol.value, path=symbol.path)
                mine.transposed = symbol.transposed
            elif symbol.is_constant:
                mine = Symbol(symbol.value)
            else:
                mine = self.add_input(f"outer_{len(self.read)}", symbol.value)
                mine.from_data = symbol.from_data or not symbol.is_tensor
                assert mine.node is not None
                self._placeholders[id(symbol)] = mine.node
                self.read.append(symbol)
            self._kept.append(symbol)
            self.inside[id(symbol)] = mine
        return self.inside[id(symbol)]


def _names_read(block: torch._C.Block) -> Iterator[str]:
    for node in block.nodes():
        yield from (value.debugName() for value in node.inputs())
        for inner in node.blocks():
            yield from _names_read(inner)
    yield from (value.debugName() for value in block.outputs())


def _raw(value: Value) -> Any:
    return value.value if isinstance(value, Symbol) else value


def _leaves(value: Value) -> list[Value]:
    """What nested tuples and lists hold."""
    if isinstance(value, tuple | list):
        return [leaf for item in value for leaf in _leaves(item)]
    return [value]


def _rebuild(structure: Value, leaves: Iterator[Value]) -> Any:
    """The same nesting with other leaves."""
    if isinstance(structure, tuple | list):
        kind = tuple if isinstance(structure, tuple) else list
        return kind(_rebuild(item, leaves) for item in structure)
    return next(leaves)


def _kind(value: Value) -> str:
    raw = _raw(value)
    if isinstance(raw, list):
        return "List[Tensor]"
    return "Tensor" if isinstance(raw, Tensor) else _KINDS[type(raw)]


def _check_same_kind(before: Value, after: Value) -> None:
    raw = _raw(after)
    if not (isinstance(raw, Tensor) or type(raw) in _KINDS) or _kind(before) != _kind(after):
        raise UnsupportedOperator("A loop carries values of another kind after a step than before.")


def _make(
    body: fx.GraphModule, arguments: Sequence[Value], replaced: Sequence[str], added: Sequence[int]
) -> LoopModule:
    """Make the module.

    Args:
        body: Takes the index and the arguments; returns the next values of `replaced`, then what
            is appended.
        arguments: What is carried, and what is read from outside.
        replaced: Names of the inputs that take a new value in each step.
        added: How many tensors each step appends to each list.
    """
    inputs = [str(node.target) for node in body.graph.nodes if node.op == "placeholder"]
    names = [name for name in inputs if name.startswith("carried_")]
    names += [name for name in inputs if name.startswith("outer_")]
    typed = [f"{name}: {_kind(value)}" for name, value in zip(names, arguments, strict=True)]
    lists = [f"list_{number}" for number in range(len(added))]
    lines = [
        f"def forward(self, trips: int, {', '.join(typed)}):"
        if typed
        else "def forward(self, trips: int):"
    ]
    lines += [f"    {name} = torch.jit.annotate(List[Tensor], [])" for name in lists]
    lines += ["    for index in range(trips):"]
    lines += [f"        result = self.body({', '.join(inputs)})"]
    lines += [f"        {name} = result[{at}]" for at, name in enumerate(replaced)]
    at = len(replaced)
    for name, count in zip(lists, added, strict=True):
        for _ in range(count):
            lines.append(f"        {name}.append(result[{at}])")
            at += 1
    lines += [f"    return ({''.join(f'{name}, ' for name in [*replaced, *lists])})"]
    kind = type("Loop", (LoopModule,), {"forward": _compile("\n".join(lines) + "\n")})
    kind.__module__ = __name__
    module: LoopModule = kind(body)
    return module


def _compile(source: str) -> Callable[..., Any]:
    """Compile a function whose source TorchScript can find again."""
    file = f"<tersor loop {next(_NUMBERS)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)
    names: dict[str, Any] = {"torch": torch, "Tensor": Tensor, "List": list}
    exec(compile(source, file, "exec"), names)
    function: Callable[..., Any] = names["forward"]
    return function
