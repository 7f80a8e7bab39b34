"""Models name in their code the device that they were saved on; on another, those names must go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

_MOVES = {"aten::cpu", "aten::cuda"}
_PACK = "aten::_pack_padded_sequence"


def use_device_(module: torch.jit.ScriptModule, device: torch.device) -> None:
    """Rewrite every method of the model in place, so that it computes on a device.

    `torch.jit.load(map_location=...)` moves weights and constants, but not the devices that code
    names: `torch.zeros(n, device="cuda:0")`, `x.cuda()`. Nor does it see that packing sequences
    takes their lengths on the processor alone.
    """
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            for name in part._c._method_names():
                graph: Any = part._c._get_method(str(name)).graph
                if _functions_stray(graph, device):
                    torch._C._jit_pass_inline(graph)
                for node in list(_strays(graph, device)):
                    _lead_back_(graph, node, device)


def _functions_stray(graph: Any, device: torch.device) -> bool:
    """Whether a function that the graph calls names a device; its own code is out of reach."""
    if not graph.findAllNodes("prim::CallFunction"):
        return False
    copy = graph.copy()
    torch._C._jit_pass_inline(copy)
    return any(True for _ in _strays(copy, device))


def _strays(block: Any, device: torch.device) -> Iterator[Any]:
    """Yield the nodes that would compute elsewhere."""
    for node in block.nodes():
        for inner in node.blocks():
            yield from _strays(inner, device)
        kind = node.kind()
        if (
            kind in _MOVES - {f"aten::{device.type}"}
            or kind == "aten::device"
            or (kind == "prim::Constant" and _is_elsewhere(node.output(), device))
            or (kind == _PACK and device.type != "cpu")
        ):
            yield node


def _lead_back_(graph: Any, node: Any, device: torch.device) -> None:
    if node.kind() in _MOVES:
        node.output().replaceAllUsesWith(next(iter(node.inputs())))
        node.destroy()
        return
    with graph.insert_point_guard(node):
        if node.kind() == _PACK:
            lengths = list(node.inputs())[1]
            home = graph.insertNode(graph.create("aten::cpu", [lengths])).output()
            home.setType(lengths.type())
            node.replaceInput(1, home)
            return
        here = graph.insertConstant(device)
    node.output().replaceAllUsesWith(here)
    node.destroy()


def _is_elsewhere(value: torch._C.Value, device: torch.device) -> bool:
    if value.type().kind() != "DeviceObjType":
        return False
    named: Any = value.toIValue()
    return named is not None and named.type not in (device.type, "meta")
