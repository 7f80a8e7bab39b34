"""GPT-2's linear layers, which transformers calls `Conv1D`, become `nn.Linear`s of the same name.

They hold their weight transposed, `[in, out]`, and multiply by `addmm`, so that a graph shows a
product of two parameters where other nets call a layer.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import fx, nn

_ADDMM = (torch.addmm, torch.ops.aten.addmm.default)


@dataclass(frozen=True)
class _Product:
    """`addmm(bias, x, weight)` of two parameters, and the name of the module that it belongs to."""

    owner: str
    weight: nn.Parameter
    bias: nn.Parameter


def linears_(graph_module: fx.GraphModule) -> None:
    """Put linear layers in the place of such products, in place.

    A weight that is read in any other way, under whatever name, stays as it is.
    """
    found = _products(graph_module)
    transposed: dict[nn.Parameter, nn.Parameter] = {}  # what is tied stays tied
    for product in dict.fromkeys(found.values()):
        weight = product.weight
        if weight not in transposed:
            turned = weight.detach().t().contiguous()
            transposed[weight] = nn.Parameter(turned, weight.requires_grad)
        layer = nn.Linear(weight.shape[0], weight.shape[1], device="meta")
        layer.weight, layer.bias = transposed[weight], product.bias
        layer.train(graph_module.get_submodule(product.owner).training)
        graph_module.set_submodule(product.owner, layer)
    for node, product in found.items():
        with graph_module.graph.inserting_before(node):
            call = graph_module.graph.call_module(product.owner, (node.args[1],))
        call.meta = dict(node.meta)
        node.replace_all_uses_with(call)
        operands = (node.args[0], node.args[2])
        graph_module.graph.erase_node(node)
        for operand in operands:
            assert isinstance(operand, fx.Node)
            if not operand.users:
                graph_module.graph.erase_node(operand)
    if found:
        graph_module.recompile()


def with_linears(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Return a copy with linear layers for such products; the graph itself where there are none."""
    if not _products(graph_module):
        return graph_module
    model = copy.deepcopy(graph_module)
    linears_(model)
    return model


def _products(graph_module: fx.GraphModule) -> dict[fx.Node, _Product]:
    """Return the products whose weights nothing but such products reads."""
    found = {
        node: product
        for node in graph_module.graph.nodes
        if (product := _product(graph_module, node)) is not None
    }
    weights: defaultdict[str, set[int]] = defaultdict(set)
    for product in found.values():
        weights[product.owner].add(id(product.weight))
    readers: defaultdict[int, set[fx.Node]] = defaultdict(set)
    for node in graph_module.graph.nodes:
        if node.op == "get_attr":
            readers[id(_attribute(graph_module, node))].update(node.users)
        elif node.op == "call_module":
            for weight in graph_module.get_submodule(str(node.target)).parameters():
                readers[id(weight)].add(node)
    return {
        node: product
        for node, product in found.items()
        if readers[id(product.weight)] <= found.keys() and len(weights[product.owner]) == 1
    }


def _product(graph_module: fx.GraphModule, node: fx.Node) -> _Product | None:
    if node.target not in _ADDMM or len(node.args) != 3 or node.kwargs:
        return None
    bias, _, weight = (
        _attribute(graph_module, each)
        if isinstance(each, fx.Node) and each.op == "get_attr"
        else None
        for each in node.args
    )
    if not isinstance(bias, nn.Parameter) or not isinstance(weight, nn.Parameter):
        return None
    owner, _, leaf = str(node.args[0].target).rpartition(".")  # type: ignore[union-attr]
    if not owner or leaf != "bias" or bias.shape != weight.shape[1:]:
        return None
    held = graph_module.get_submodule(owner)  # of tied weights, one owner alone has them
    if getattr(held, "weight", weight) is not weight or len(list(held.children())) > 0:
        return None
    fits = {name for name, _ in held.named_parameters()} <= {"weight", "bias"}
    return _Product(owner, weight, bias) if fits else None


def _attribute(graph_module: fx.GraphModule, node: fx.Node) -> object:
    owner, _, leaf = str(node.target).rpartition(".")
    return getattr(graph_module.get_submodule(owner), leaf)
