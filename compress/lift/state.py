"""State that a model keeps between calls: in cells beside the graph, which it reads and writes.

TorchScript keeps it in attributes of modules that `forward` sets, or writes to in place. A module
that does so is walked like any other; only the attributes move, to one cell for each module, and
each access becomes a call of a small TorchScript module that shares the cell.
"""

from __future__ import annotations

import copy
import typing
from collections.abc import Iterator
from typing import Any

import torch

from compress.errors import UnsupportedOperator

_VIEWS = frozenset(
    f"aten::{name}"
    for name in ("select", "slice", "narrow", "view", "transpose", "permute", "t", "squeeze",
                 "unsqueeze")
)  # fmt: skip
Types = dict[str, Any]
"""Attribute name to its TorchScript type."""


def find_state(module: torch.jit.ScriptModule) -> dict[str, Types]:
    """Dotted name of each module with state to the attributes that its methods write."""
    written: dict[str, Types] = {}
    read: dict[tuple[str, str], Any] = {}
    for path, part in module.named_modules():
        if not isinstance(part, torch.jit.ScriptModule):
            continue
        for method in part._c._method_names():
            graph = part._c._get_method(str(method)).graph
            for node in _all_nodes(graph):
                _note(node, path, written, read)
    return {
        path: {name: read.get((path, name), kind) for name, kind in types.items()}
        for path, types in written.items()
    }


def has_state(module: torch.jit.ScriptModule) -> bool:
    """Whether forward, in eval mode, assigns to an attribute or may write into what one holds.

    Errs on the side of yes, where an operator in place writes into what cannot be told apart.
    """
    graph = _eval_graph(module)
    if graph.findAllNodes("prim::SetAttr", True):
        return True
    try:
        aliases = graph.alias_db()
    # an operator that torch knows nothing of, or a torch that cannot say: a copy does no harm
    except (RuntimeError, AttributeError):
        return True
    return any(
        aliases.has_writers(node.output())
        for node in graph.findAllNodes("prim::GetAttr", True)
        if node.output().type().kind() != "ClassType"
    )


def state_of(module: torch.jit.ScriptModule) -> list[Any]:
    """What the attributes hold that some method writes."""
    parts: dict[str, Any] = dict(module.named_modules())
    return [
        parts[path]._c.getattr(name) for path, types in find_state(module).items() for name in types
    ]


def assigns(module: torch.jit.ScriptModule) -> bool:
    """Whether forward, in eval mode, assigns to an attribute."""
    return bool(_eval_graph(module).findAllNodes("prim::SetAttr", True))


def _eval_graph(module: torch.jit.ScriptModule) -> Any:
    """Forward with all that it calls, without what only training does."""
    graph: Any = module._c._get_method("forward").graph.copy()
    torch._C._jit_pass_inline(graph)
    for node in graph.findAllNodes("prim::GetAttr", True):
        if node.s("name") == "training":
            with graph.insert_point_guard(node):
                node.output().replaceAllUsesWith(graph.insertConstant(False))
    torch._C._jit_pass_constant_propagation(graph)
    return graph


def _all_nodes(block: Any) -> Iterator[torch._C.Node]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all_nodes(inner)


def _note(
    node: torch._C.Node, path: str, written: dict[str, Types], read: dict[tuple[str, str], Any]
) -> None:
    kind = node.kind()
    if kind == "prim::GetAttr":
        owner = _owner(node.input(), path)
        if owner is not None:
            read[owner, node.s("name")] = node.output().type()
    elif kind == "prim::SetAttr":
        target, value = node.inputs()
        owner = _owner(target, path)
        if owner is not None:
            written.setdefault(owner, {})[node.s("name")] = value.type()
    elif kind.endswith("_") and not kind.endswith("__"):
        first = next(iter(node.inputs()), None)
        while first is not None and first.node().kind() in _VIEWS:
            first = next(iter(first.node().inputs()), None)
        if first is not None and first.node().kind() == "prim::GetAttr":
            owner = _owner(first.node().input(), path)
            if owner is not None:
                written.setdefault(owner, {})[first.node().s("name")] = first.type()


def _owner(value: torch._C.Value, path: str) -> str | None:
    """Dotted name of the module that a value is, in a method of the module at `path`."""
    node = value.node()
    if node.kind() == "prim::Param":
        return path if value.type().kind() == "ClassType" else None
    if node.kind() != "prim::GetAttr":
        return None
    holder = _owner(node.input(), path)
    if holder is None:
        return None
    return f"{holder}.{node.s('name')}" if holder else node.s("name")


class StateCells:
    """The cells of one walk. A walk runs the model, so its cells change until `restore`."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self._types = find_state(module)
        self._modules = dict(module.named_modules())
        self._cells: dict[str, tuple[Any, torch.jit.ScriptModule]] = {}
        self.used: list[str] = []

    def holds(self, path: str, name: str) -> bool:
        """Whether an attribute of the module at `path` is state."""
        return name in self._types.get(path, ())

    def cell(self, path: str) -> torch.jit.ScriptModule:
        """The cell of the module at `path`."""
        return self._kind_and_cell(path)[1]

    def reader(self, path: str, name: str) -> torch.jit.ScriptModule:
        """A module whose `forward()` returns an attribute."""
        self._use(path, name)
        return self.accessor([path], f"def forward(self):\n    return self.cell_0.{name}\n")

    def writer(self, path: str, name: str) -> torch.jit.ScriptModule:
        """A module whose `forward(value)` sets an attribute."""
        self._use(path, name)
        kind = self._types[path][name].annotation_str
        source = f"def forward(self, value: {kind}) -> None:\n    self.cell_0.{name} = value\n"
        return self.accessor([path], source)

    def accessor(
        self, paths: list[str], source: str, function: Any = None
    ) -> torch.jit.ScriptModule:
        """A module with the cells of `paths` as `cell_0, cell_1 …`, and a `forward`.

        Args:
            paths: Modules with state.
            source: TorchScript code of `forward`.
            function: What the name `region` means in it.

        Raises:
            UnsupportedOperator: The code cannot be compiled: an argument of a kind it cannot name.
        """
        kinds = [("_is_impure", torch._C.BoolType.get(), True)]  # else torch.fx drops calls
        cells = {f"cell_{index}": self._kind_and_cell(path) for index, path in enumerate(paths)}
        return build_module(kinds if paths else [], cells, source, function)[1]

    def restore(self) -> None:
        """Give every cell the values of the original again."""
        for path, (_, cell) in self._cells.items():
            self._fill(path, cell)

    def _use(self, path: str, name: str) -> None:
        full = f"{path}.{name}" if path else name
        if full not in self.used:
            self.used.append(full)

    def _kind_and_cell(self, path: str) -> tuple[Any, torch.jit.ScriptModule]:
        if path not in self._cells:
            original: Any = self._modules[path]
            attributes = [
                (name, kind, copy.deepcopy(original._c.getattr(name)))
                for name, kind in self._types[path].items()
            ]
            self._cells[path] = build_module(attributes, {}, None)
        return self._cells[path]

    def _fill(self, path: str, cell: Any) -> None:
        original: Any = self._modules[path]
        for name in self._types[path]:
            cell._c.setattr(name, copy.deepcopy(original._c.getattr(name)))


def build_module(
    attributes: list[tuple[str, Any, Any]],
    modules: dict[str, tuple[Any, torch.jit.ScriptModule]],
    source: str | None,
    function: Any = None,
) -> tuple[Any, torch.jit.ScriptModule]:
    """Make a TorchScript module of a type of its own.

    Args:
        attributes: Name, TorchScript type and value of each.
        modules: Name to kind, as returned from here, and module.
        source: Code of `forward`.
        function: What the name `region` means in it.

    Raises:
        UnsupportedOperator: The code cannot be compiled.
    """
    builder: Any = torch._C.ConcreteModuleTypeBuilder(torch.nn.Module)
    for name, jit_type, _ in attributes:
        builder.add_attribute(name, jit_type, False, False)
    for name, (kind, _) in modules.items():
        builder.add_module(name, kind)
    own_kind = builder.build()
    empty: Any = torch._C._create_module_with_type(own_kind.jit_type)
    for name, _, value in attributes:
        empty.setattr(name, value)
    for name, (_, module) in modules.items():
        empty.setattr(name, module._c)
    if source is not None:

        def resolve(name: str) -> Any:
            return (
                function if name == "region" else getattr(torch, name, getattr(typing, name, None))
            )

        try:
            empty._define(own_kind, source, resolve)
        except RuntimeError as error:
            raise UnsupportedOperator("An argument is of a kind that cannot be named.") from error
        torch._C._jit_pass_inline(empty._get_method("forward").graph)  # `function` ends with us
    made: torch.jit.ScriptModule = torch.jit._recursive.wrap_cpp_module(  # type: ignore[no-untyped-call]
        empty
    )
    return own_kind, made
