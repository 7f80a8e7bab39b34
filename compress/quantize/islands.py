"""Regions that stay TorchScript, while the graph around them is compressed.

They may keep state, and know no hooks. What runs a graph on the way to a finished model runs
copies; the finished graph gets its islands afresh from the lifted one, as if nobody had ever
called them.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn


class Opaque(nn.Module):
    """A module in one that nobody looks into: neither its kind nor its weights are seen."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self._held = [module]
        self._is_impure = bool(getattr(module, "_is_impure", False))  # else torch.fx drops calls

    @property
    def held(self) -> nn.Module:
        """The module inside."""
        return self._held[0]

    def forward(self, *arguments: Any) -> Any:
        """Call it."""
        return self._held[0](*arguments)


def island_names(graph_module: fx.GraphModule) -> list[str]:
    """Names of the islands that the graph calls, in order of their first call."""
    called = (str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    return [name for name in dict.fromkeys(called) if _is_island(graph_module.get_submodule(name))]


def keeps_state(graph_module: fx.GraphModule) -> bool:
    """Whether an island writes to what it shares with others."""
    return any(
        getattr(graph_module.get_submodule(name), "_is_impure", False)
        for name in island_names(graph_module)
    )


def renew_islands(
    graph_module: fx.GraphModule, source: fx.GraphModule, *, hidden: bool = False
) -> None:
    """Give a graph's islands the weights and the state that they have in `source`, in place.

    Args:
        graph_module: A graph with the islands of `source`, hidden or not.
        source: Shares no memory with the islands after.
        hidden: Whether they shall be hidden from now on.
    """
    islands = {name: source.get_submodule(name) for name in island_names(source)}
    for name, fresh in copy.deepcopy(islands).items():  # together: they may share their state
        assert isinstance(fresh, torch.jit.ScriptModule)
        graph_module.set_submodule(name, Opaque(fresh) if hidden else fresh)


def weights_of(graph_module: fx.GraphModule, name: str) -> list[Tensor]:
    """Parameters that a module of the graph holds; those that an island is given, too."""
    module = graph_module.get_submodule(name)
    found: list[Tensor] = list(module.parameters())
    if _is_island(module):
        found += [value for _, value in given_to(graph_module, name)]
    return list({id(value): value for value in found}.values())


def given_to(graph_module: fx.GraphModule, name: str) -> Iterator[tuple[str, Tensor]]:
    """Path and value of each parameter that the graph reads as an argument of a module."""
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and node.target == name:
            for argument in node.all_input_nodes:
                if argument.op == "get_attr":
                    owner, _, leaf = str(argument.target).rpartition(".")
                    value = getattr(graph_module.get_submodule(owner), leaf)
                    if isinstance(value, nn.Parameter):
                        yield str(argument.target), value


def _is_island(module: nn.Module) -> bool:
    return isinstance(module, torch.jit.ScriptModule)
