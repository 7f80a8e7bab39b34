"""What is said of a lifted model: its layers, islands, guards and parameters."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, fx

from compress.lift.builder import GraphBuilder
from compress.lift.islands import Place
from compress.lift.report import Island, LiftReport
from compress.lift.verify import Walk


def summarize(
    module: torch.jit.ScriptModule, walk: Walk, islands: Mapping[Place, str]
) -> LiftReport:
    """Report on a model by the walk that lifted it.

    Args:
        module: The original.
        walk: The walk.
        islands: Places that stayed TorchScript, and why.
    """
    builder = walk.builder
    lifted = walk.graph_module
    found: list[Island] = []
    loose: set[str] = set()
    for prefix, part in _graphs(builder):
        graph_module = lifted.get_submodule(prefix) if prefix else lifted
        assert isinstance(graph_module, torch.fx.GraphModule)
        loose |= _only_in_islands(part, graph_module)
        for name, (place, _) in part.islands.items():
            held = _island_parameters(name, graph_module)
            full = f"{prefix}.{name}" if prefix else name
            found.append(Island(full, islands[place], sum(value.numel() for value in held)))
    in_islands = tuple(f"{island.name}." for island in found)
    mine = {
        name: value.numel()
        for name, value in lifted.named_parameters()
        if name not in loose and not name.startswith(in_islands)
    }
    total = sum(value.numel() for value in module.parameters())
    kept = sum(value.numel() for value in lifted.parameters())
    by_module: dict[str, int] = {}
    for name, count in mine.items():
        owner = name.rpartition(".")[0]
        by_module[owner] = by_module.get(owner, 0) + count
    return LiftReport(
        operators=dict(sorted(walk.operators.items())),
        guards=list(
            dict.fromkeys(
                [*walk.assumed, *(str(g) for part in builder.parts() for g in part.guards)]
            )
        ),
        modules={name: type(held).__name__ for name, held in builder.modules.items()},
        islands=found,
        parameters=max(total, kept),
        parameters_lifted=sum(mine.values()),
        parameters_unused=max(total - kept, 0),
        parameters_by_module=by_module,
        state=builder.cells.used,
        methods_dropped=_other_methods(module),
    )


def _graphs(builder: GraphBuilder, prefix: str = "") -> Iterator[tuple[str, GraphBuilder]]:
    """The graph's builder and those of the loops in it, with the names of their graphs."""
    yield prefix, builder
    for name, (_, inner) in builder.loops.items():
        yield from _graphs(inner, f"{prefix}.{name}.body" if prefix else f"{name}.body")


def _other_methods(module: torch.jit.ScriptModule) -> list[str]:
    """Methods of the model itself that forward does not stand for."""
    names = [str(name) for name in module._c._method_names()]
    return [name for name in names if name != "forward" and not name.startswith("__")]


def _island_parameters(name: str, lifted: fx.GraphModule) -> list[Tensor]:
    """Parameters that an island holds, or is given."""
    held = list(lifted.get_submodule(name).parameters())
    own = dict(lifted.named_parameters(remove_duplicate=False))
    for node in lifted.graph.nodes:
        if node.op == "call_module" and node.target == name:
            given = (str(a.target) for a in node.all_input_nodes if a.op == "get_attr")
            held += [own[path] for path in given if path in own]
    return list({id(value): value for value in held}.values())


def _only_in_islands(builder: GraphBuilder, lifted: fx.GraphModule) -> set[str]:
    """Names of parameters that the graph reads only to give them to islands."""
    names = set()
    for node in lifted.graph.nodes:
        if node.op == "get_attr" and all(
            user.op == "call_module" and user.target in builder.islands for user in node.users
        ):
            names.add(str(node.target))
    return names
