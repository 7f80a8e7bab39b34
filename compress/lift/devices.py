"""Models saved on a GPU name it in their code; on the processor those names must go."""

from __future__ import annotations

from typing import Any

import torch


def use_processor_(module: torch.jit.ScriptModule) -> None:
    """Rewrite every method of the model in place, so that it computes on the processor.

    `torch.jit.load(map_location="cpu")` moves weights and constants, but not the devices that code
    names: `torch.zeros(n, device="cuda:0")`, `x.cuda()`.
    """
    for part in module.modules():
        if isinstance(part, torch.jit.ScriptModule):
            for name in part._c._method_names():
                graph: Any = part._c._get_method(str(name)).graph
                _rewrite_(graph, graph)


def _rewrite_(graph: Any, block: Any) -> None:
    for node in list(block.nodes()):
        for inner in node.blocks():
            _rewrite_(graph, inner)
        if node.kind() == "aten::cuda":
            node.output().replaceAllUsesWith(next(iter(node.inputs())))
            node.destroy()
        elif node.kind() == "aten::device" or (
            node.kind() == "prim::Constant" and _is_elsewhere(node.output())
        ):
            with graph.insert_point_guard(node):
                here = graph.insertConstant(torch.device("cpu"))
            node.output().replaceAllUsesWith(here)
            node.destroy()


def _is_elsewhere(value: torch._C.Value) -> bool:
    if value.type().kind() != "DeviceObjType":
        return False
    device: Any = value.toIValue()
    return device is not None and device.type not in ("cpu", "meta")
