"""Closes a graph under way: drops what nothing uses, adds the checks, and builds the module."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, fx, nn
from torch.nn import functional as F

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.guards import expect, is_check
from compress.lift.values import Value


def finish(builder: GraphBuilder, output: Value) -> fx.GraphModule:
    """Closes the model's own graph; what loops hold has its original name there too."""
    lifted = close(builder, output)
    builder.cells.restore()
    loops = {name.partition(".")[0] for name in builder.loops}
    for part in builder.parts():
        for name in sorted(part.used):
            if name in builder.modules or name in part.tensors:
                held = builder.modules.get(name, part.tensors.get(name))
                _attach(lifted, name, held)
    for name in loops & lifted._modules.keys():  # the first name of a parameter is its name
        lifted._modules[name] = lifted._modules.pop(name)
    used = set().union(*(part.used for part in builder.parts()))
    builder.modules = {name: one for name, one in builder.modules.items() if name in used}
    return lifted.eval()


def close(builder: GraphBuilder, output: Value) -> fx.GraphModule:
    """Closes the graph with `output`, drops what nothing uses, and builds the module."""
    builder.current(output)
    builder.graph.output(builder.nodes(output))
    _drop_dead(builder)
    _part_from_biases(builder)
    alive = set(builder.graph.nodes)
    builder.guards = [guard for guard in builder.guards if guard.node in alive]
    expect(builder.graph, builder.guards)
    builder.used = {
        str(node.target) for node in builder.graph.nodes if node.op in ("call_module", "get_attr")
    }
    builder.islands = {name: one for name, one in builder.islands.items() if name in builder.used}
    builder.loops = {name: one for name, one in builder.loops.items() if name in builder.used}
    held: dict[str, Any] = builder.modules | builder.tensors | builder.accessors
    held |= {name: module for name, (_, module) in builder.islands.items()}
    held |= {name: module for name, (module, _) in builder.loops.items()}
    root = {name: one for name, one in held.items() if name in builder.used}
    constants = {name: one for name, one in builder.constants.items() if name in builder.used}
    _check_names(root)
    lifted = fx.GraphModule(root | constants, builder.graph)
    for name, value in constants.items():  # not of the original's state_dict
        lifted.register_buffer(name, value, persistent=False)
    return lifted.eval()


def _drop_dead(builder: GraphBuilder) -> None:
    guarded = {guard.node for guard in builder.guards}
    regions = {name: module for name, (_, module) in builder.islands.items()} | builder.accessors
    impure = {name for name, one in regions.items() if getattr(one, "_is_impure", False)}
    builder.graph.eliminate_dead_code(
        lambda node: (
            node.op in ("placeholder", "output")
            or node in guarded
            or is_check(node.target)
            or (node.op == "call_module" and str(node.target) in impure)
        )
    )


def _part_from_biases(builder: GraphBuilder) -> None:
    """Turn layers that leave their bias out into functions, where the graph reads it by itself.

    `x @ layer.weight.t()` forms a layer without a bias under the name where the original has one;
    read at that name, it would be the layer's own.
    """
    graph = builder.graph
    read = {str(node.target) for node in graph.nodes if node.op == "get_attr"}
    for node in list(graph.nodes):
        layer: Any = builder.modules.get(str(node.target)) if node.op == "call_module" else None
        kind = _FUNCTIONS.get(type(layer))
        if kind is None or layer.bias is not None or f"{node.target}.bias" not in read:
            continue
        name = f"{node.target}.weight"
        builder.tensors[name] = layer.weight
        function, settings = kind
        with graph.inserting_before(node):
            weight = graph.create_node("get_attr", name)
            given = (node.args[0], weight, None, *(getattr(layer, each) for each in settings))
            node.replace_all_uses_with(graph.call_function(function, given))
        graph.erase_node(node)


_CONVOLUTION = ("stride", "padding", "dilation", "groups")
_FUNCTIONS: dict[type, tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.Linear: (F.linear, ()),
    nn.Conv1d: (F.conv1d, _CONVOLUTION),
    nn.Conv2d: (F.conv2d, _CONVOLUTION),
    nn.Conv3d: (F.conv3d, _CONVOLUTION),
}


def _attach(root: nn.Module, path: str, held: Any) -> None:
    """Sets a module or tensor at a dotted path, unless something is there."""
    owner: nn.Module = root
    *scopes, name = path.split(".")
    for scope in scopes:
        if scope not in owner._modules:
            owner.add_module(scope, nn.Module())
        inner = owner._modules[scope]
        assert inner is not None
        owner = inner
    if hasattr(owner, name):
        return
    if isinstance(held, Tensor) and not isinstance(held, nn.Parameter):
        owner.register_buffer(name, held)
    else:
        setattr(owner, name, held)


def _check_names(root: dict[str, Any]) -> None:
    for name in (path.partition(".")[0] for path in root):
        if hasattr(fx.GraphModule, name):
            raise UnsupportedOperator(f"The name '{name}' is torch.fx's own; rename the attribute.")
