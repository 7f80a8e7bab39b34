"""Models name in their code the device that they were saved on; on another, those names must go."""

from __future__ import annotations

from typing import Any

import torch

_MOVES = {"aten::cpu", "aten::cuda"}


def use_device_(module: torch.jit.ScriptModule, device: torch.device) -> None:
    """Rewrite every method of the model in place, so that it computes on a device.

    `torch.jit.load(map_location=...)` moves weights and constants, but not the devices that code
    names: `torch.zeros(n, device="cuda:0")`, `x.cuda()`.
    """
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            for name in part._c._method_names():
                graph: Any = part._c._get_method(str(name)).graph
                _rewrite_(graph, graph, device)


def _rewrite_(graph: Any, block: Any, device: torch.device) -> None:
    for node in list(block.nodes()):
        for inner in node.blocks():
            _rewrite_(graph, inner, device)
        if node.kind() in _MOVES - {f"aten::{device.type}"}:
            node.output().replaceAllUsesWith(next(iter(node.inputs())))
            node.destroy()
        elif node.kind() == "aten::device" or (
            node.kind() == "prim::Constant" and _is_elsewhere(node.output(), device)
        ):
            with graph.insert_point_guard(node):
                here = graph.insertConstant(device)
            node.output().replaceAllUsesWith(here)
            node.destroy()


def _is_elsewhere(value: torch._C.Value, device: torch.device) -> bool:
    if value.type().kind() != "DeviceObjType":
        return False
    named: Any = value.toIValue()
    return named is not None and named.type not in (device.type, "meta")
