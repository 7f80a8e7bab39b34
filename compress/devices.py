"""Processor and GPU: which there is, and how models and what they are given get there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

from compress.errors import DeviceUnavailable
from compress.spec import Backend, Device
from compress.structure import map_tensors

CPU = torch.device("cpu")


def find_device(asked: Device) -> torch.device:
    """Return the device to compute on.

    Raises:
        DeviceUnavailable: `cuda` was asked for, and there is none.
    """
    if asked == "cpu" or not (asked == "cuda" or torch.cuda.is_available()):
        return CPU
    if not torch.cuda.is_available():
        raise DeviceUnavailable(
            "No CUDA device is to be seen here; use device 'auto' or 'cpu', or a worker with a GPU."
        )
    return torch.device("cuda")


def device_of(backend: Backend) -> torch.device:
    """Return where a backend's files run and are measured.

    Raises:
        DeviceUnavailable: On a GPU, and there is none.
    """
    return find_device("cuda") if backend == "cuda" else CPU


def move(model: nn.Module, device: torch.device) -> None:
    """Move weights, in place, and the devices that lifted code names where it makes tensors."""
    model.to(device)

    def there(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for part in model.modules():
        if not isinstance(part, fx.GraphModule):
            continue
        named = [
            node for node in part.graph.nodes
            if any(isinstance(value, torch.device) for value in (*node.args, *node.kwargs.values()))
        ]  # fmt: skip
        for node in named:
            node.args = tuple(map(there, node.args))
            node.kwargs = {name: there(value) for name, value in node.kwargs.items()}
        if named or (device.type != "cpu" and _keep_lengths(part.graph)):
            part.recompile()


def _keep_lengths(graph: fx.Graph) -> bool:
    """Hand lengths of sequences that are packed to the processor; return whether there are any.

    Packing takes them there alone, wherever the sequences are.
    """
    packs = graph.find_nodes(
        op="call_function", target=torch.ops.aten._pack_padded_sequence.default
    )
    for node in packs:
        sequences, lengths, *others = node.args
        if isinstance(lengths, fx.Node) and lengths.target == "cpu":
            continue
        with graph.inserting_before(node):
            node.args = (sequences, graph.call_method("cpu", (lengths,)), *others)
    return bool(packs)


def bring(value: Any, device: torch.device) -> Any:
    """Copies nested containers, with every tensor on a device."""
    return map_tensors(value, lambda tensor: tensor.to(device))


def from_processor(run: Callable[..., Any], device: torch.device) -> Callable[..., Any]:
    """Return a model that is given tensors on the processor, and answers there."""
    if device.type == "cpu":
        return run

    def run_there(*arguments: Any) -> Any:
        return bring(run(*bring(arguments, device)), CPU)

    return run_there
