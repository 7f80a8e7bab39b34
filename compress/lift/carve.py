"""Cuts nodes out of a TorchScript graph and makes a module of them, with their code as it was.

What depends on the values of its data cannot become a graph of fixed operators. Such a region goes
on as TorchScript: it takes the tensors that it reads, weights among them, as arguments, and
returns what is read of it later.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.lift.state import StateCells
from compress.lift.values import ModuleRef, Value

_CONTAINERS = ("ListType", "DictType")
_PLAIN = frozenset({"TensorType", "IntType", "FloatType", "BoolType", "NumberType"})

_MOST_NESTED_CALLS = 30


class NotCarvable(Exception):
    """The region changes what lives outside of it, or holds what no argument can carry."""


@dataclass(frozen=True)
class Region:
    """Nodes cut out of a block.

    Attributes:
        module: Takes `arguments`; returns `outputs`, then `changed`: a tuple if they are several.
        arguments: What each argument is: a name in the frame, or an attribute's module and name.
        changed: Names in the frame of tensors that the region writes to.
        outputs: Names of the values that are read after it.
        length: How many nodes of the block it spans.
        keeps_state: Whether it reads or writes state of the model.
    """

    module: torch.jit.ScriptModule
    arguments: list[str | tuple[ModuleRef, str]]
    changed: list[str]
    outputs: list[str]
    length: int
    keeps_state: bool


def carve(
    block: torch._C.Block | torch._C.Graph,
    nodes: Sequence[torch._C.Node],
    start: int,
    frame: Mapping[str, Value],
    cells: StateCells,
) -> Region:
    """Cut the region that begins at `nodes[start]`: that node, and what reads its containers.

    Raises:
        NotCarvable: It cannot stand alone.
    """
    stop = _grow(block, nodes, start, frame)
    chosen = nodes[start:stop]
    outputs = _read_later(block, nodes, chosen, stop)
    for value in outputs:
        if not _is_plain(value.type()):
            raise NotCarvable(f"returns a {value.type().annotation_str}")
    try:
        return _Cut(frame, cells).finish(chosen, outputs)
    except AttributeError as error:
        if error.obj is torch._C or isinstance(error.obj, torch._C.Graph | torch._C.Node):
            raise NotCarvable(f"needs what this version of torch lacks ({error.name})") from error
        raise


def _grow(
    block: torch._C.Block | torch._C.Graph,
    nodes: Sequence[torch._C.Node],
    start: int,
    frame: Mapping[str, Value],
) -> int:
    """Return where the region ends, so that no list or dict that it makes or fills outlives it."""
    stop = start + 1
    last = _last_uses(nodes)
    returned = {value.debugName() for value in block.outputs()}
    index = start
    while index < stop:
        held = [*nodes[index].outputs(), *_captured(nodes[index])]
        for value in held:
            if value.type().kind() in _CONTAINERS and not _is_fixed(frame.get(value.debugName())):
                if value.debugName() in returned:
                    raise NotCarvable("fills a list that is returned")
                stop = max(stop, last.get(value.debugName(), index) + 1)
        index += 1
    return stop


def _is_fixed(value: Value) -> bool:
    """A container that was filled before the region: what it holds is known."""
    return isinstance(value, list | dict | tuple) and bool(value)


def _last_uses(nodes: Sequence[torch._C.Node]) -> dict[str, int]:
    return {
        value.debugName(): index for index, node in enumerate(nodes) for value in _captured(node)
    }


def _read_later(
    block: torch._C.Block | torch._C.Graph,
    nodes: Sequence[torch._C.Node],
    chosen: Sequence[torch._C.Node],
    stop: int,
) -> list[torch._C.Value]:
    later = {value.debugName() for node in nodes[stop:] for value in _captured(node)}
    later |= {value.debugName() for value in block.outputs()}
    return [v for node in chosen for v in node.outputs() if v.debugName() in later]


def _captured(node: torch._C.Node) -> Iterator[torch._C.Value]:
    """All values that a node or its blocks read, also those made inside."""
    yield from node.inputs()
    for block in node.blocks():
        for inner in block.nodes():
            yield from _captured(inner)
        yield from block.outputs()


def _is_plain(kind: Any) -> bool:
    if kind.kind() in ("TupleType", "OptionalType"):
        return all(_is_plain(inner) for inner in kind.containedTypes())
    return kind.kind() in _PLAIN


class _Cut:
    """One region under the knife."""

    def __init__(self, frame: Mapping[str, Value], cells: StateCells) -> None:
        self.graph: Any = torch._C.Graph()  # whose stubs lack most methods
        self._frame = frame
        self._cells = cells
        self._state: dict[str, Any] = {}  # dotted name of a module to the input for its cell
        self._values: dict[str, torch._C.Value] = {}
        self._arguments: list[str | tuple[ModuleRef, str]] = []
        self._modules: dict[str, ModuleRef] = {}
        self._attributes: dict[str, torch._C.Value] = {}

    def finish(self, chosen: Sequence[torch._C.Node], outputs: Sequence[torch._C.Value]) -> Region:
        for node in chosen:
            clone = self.graph.createClone(node, self._value)
            self.graph.appendNode(clone)
            for mine, original in zip(clone.outputs(), node.outputs(), strict=True):
                mine.setType(original.type())
                self._values[original.debugName()] = mine
        for value in outputs:
            self.graph.registerOutput(self._values[value.debugName()])
        self._inline()
        self._take_attributes()
        torch._C._jit_pass_constant_propagation(self.graph)  # dead branches may hold writes
        torch._C._jit_pass_dce(self.graph)
        _check(self.graph)
        changed = self._return_changed()
        torch._C._jit_pass_dce(self.graph)
        if len(list(self.graph.outputs())) != 1:
            self.graph.makeMultiOutputIntoTuple()
        self.graph.lint()
        return Region(
            self._as_module(),
            self._arguments,
            changed,
            [value.debugName() for value in outputs],
            len(chosen),
            bool(self._state),
        )

    def _inline(self) -> None:
        """Open all calls; one pass may leave the calls inside what it opened."""
        for _ in range(_MOST_NESTED_CALLS):
            torch._C._jit_pass_inline(self.graph)
            kinds = ("prim::CallFunction", "prim::CallMethod")
            if not any(list(self.graph.findAllNodes(kind)) for kind in kinds):
                return

    def _value(self, value: torch._C.Value) -> torch._C.Value:
        """What stands for a value of the original in the region: a constant or an argument."""
        name = value.debugName()
        if name not in self._values:
            self._values[name] = self._take(name, value)
        return self._values[name]

    def _take(self, name: str, value: torch._C.Value) -> Any:
        held = self._frame.get(name)
        node = value.node()
        if node.kind() == "prim::Constant":
            return self.graph.insertNode(self.graph.createClone(node, lambda inner: inner)).output()
        if held is None and name in self._frame:
            return self.graph.insertConstant(None)
        if isinstance(held, list | dict) and not held and value.type().kind() in _CONTAINERS:
            # an empty container that only the region fills: it may as well be made inside
            return self.graph.insertNode(self.graph.createClone(node, lambda inner: inner)).output()
        argument = self.graph.addInput()
        argument.setType(value.type())
        self._arguments.append(name)
        if isinstance(held, ModuleRef):
            self._modules[argument.debugName()] = held
        return argument

    def _take_attributes(self) -> None:
        """Turn attributes that the region reads into arguments, and drop the modules."""
        for index in reversed(range(len(list(self.graph.inputs())))):
            argument = list(self.graph.inputs())[index]
            module = self._modules.get(argument.debugName())
            if module is not None:
                self._resolve(argument, module)
        for index in reversed(range(len(list(self.graph.inputs())))):
            if list(self.graph.inputs())[index].debugName() in self._modules:
                self.graph.eraseInput(index)
                del self._arguments[index]

    def _resolve(self, holder: torch._C.Value, module: ModuleRef) -> None:
        for use in list(holder.uses()):
            node = use.user
            if node.kind() not in ("prim::GetAttr", "prim::SetAttr") or use.offset != 0:
                raise NotCarvable(f"uses its module in {node.kind()}")
            name = node.s("name")
            if self._cells.holds(module.path, name):
                node.replaceInput(0, self._cell(module.path))
                continue
            child = dict(module.module.named_children()).get(name)
            if child is not None:
                assert isinstance(child, torch.jit.ScriptModule)
                self._resolve(node.output(), ModuleRef(module.child_path(name), child))
            else:
                node.output().replaceAllUsesWith(self._attribute(module, name, node))
            node.destroy()

    def _cell(self, path: str) -> Any:
        """The input that stands for a module's state; the region's module holds it itself."""
        if path not in self._state:
            self._state[path] = self.graph.addInput()
            self._state[path].setType(self._cells.cell(path)._c._type())
            self._arguments.append("")
        return self._state[path]

    def _attribute(self, module: ModuleRef, name: str, node: torch._C.Node) -> torch._C.Value:
        path = module.child_path(name)
        if path not in self._attributes:
            value = module.module._c.getattr(name)
            if isinstance(value, Tensor):
                argument = self.graph.addInput()
                argument.setType(node.output().type())
                self._arguments.append((module, name))
                self._attributes[path] = argument
            else:
                first = next(iter(self.graph.nodes()))
                with self.graph.insert_point_guard(first):
                    self._attributes[path] = self.graph.insertConstant(value)
        return self._attributes[path]

    def _return_changed(self) -> list[str]:
        """Let the region write to copies of its arguments, and return them."""
        aliases = self.graph.alias_db()
        changed = []
        for argument, source in zip(list(self.graph.inputs()), list(self._arguments), strict=True):
            if source == "" or not aliases.has_writers(argument):
                continue
            if not isinstance(source, str) or argument.type().kind() != "TensorType":
                raise NotCarvable("changes what lives outside of it")
            changed.append(source)
            first = next(iter(self.graph.nodes()))
            with self.graph.insert_point_guard(first):
                copy = self.graph.insert("aten::clone", [argument])
            argument.replaceAllUsesAfterNodeWith(copy.node(), copy)
            self.graph.registerOutput(copy)
        return changed

    def _as_module(self) -> torch.jit.ScriptModule:
        """Return a module whose forward is the graph; cells are its own, not arguments."""
        function = torch._C._create_function_from_graph("region", self.graph)
        paths = {value.debugName(): path for path, value in self._state.items()}
        typed, passed = [], []
        for index, value in enumerate(self.graph.inputs()):
            if value.debugName() in paths:
                passed.append(f"self.cell_{list(self._state).index(paths[value.debugName()])}")
            else:
                passed.append(f"argument_{index}")
                typed.append(f"argument_{index}: {value.type().annotation_str}")
        self._arguments = [source for source in self._arguments if source != ""]
        source = f"def forward({', '.join(['self', *typed])}):\n"
        source += f"    return region({', '.join(passed)})\n"
        module = self._cells.accessor(list(self._state), source, function)
        return module.eval()


def _check(graph: Any) -> None:
    for kind in ("prim::CreateObject", "prim::CallMethod", "prim::CallFunction", "prim::fork"):
        if list(graph.findAllNodes(kind)):
            raise NotCarvable(f"holds {kind}")
