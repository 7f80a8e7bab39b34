"""Empirical bias correction: take the mean error of each output channel out of the bias.

Rounding weights shifts the mean of what a layer computes: `E[W' x'] - E[W x]` is not zero. The
shift of each output channel, before its activation function, is measured on calibration data and
taken from the bias. Layers are corrected in the graph's order, each on the inputs that the int8
graph gives it with all earlier ones corrected.

Source: Nagel et al. 2019, Data-Free Quantization Through Weight Equalization and Bias Correction,
appendix D, eq. 17 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.quantize.channels import channel_means
from compress.quantize.fx_layers import before_rounding, is_int8, product_inside, set_bias
from compress.quantize.stepping import Stepper, called_once
from compress.spec import Backend


def correct_biases_(
    converted: fx.GraphModule,
    reference: fx.GraphModule,
    batches: Sequence[Sequence[Any]],
    backend: Backend = "x86",
) -> dict[str, Tensor]:
    """Correct the biases of an int8 graph in place.

    Args:
        converted: The int8 graph.
        reference: The float graph; its modules bear the names of the int8 ones.
        batches: Inputs, all of which are held in memory at every node.
        backend: What the graph is packed for.

    Returns:
        Layer name to what was added to its bias, `[out]`, in order of the call.
    """
    layers = [
        name
        for name in called_once(converted)
        if is_int8(converted.get_submodule(name)) and name in called_once(reference)
    ]
    expected = _float_means(reference, layers, batches)
    shifts: dict[str, Tensor] = {}
    stepper = Stepper(converted, batches)
    for node in stepper.nodes():
        name = str(node.target)
        if node.op != "call_module" or name not in expected:
            continue
        module = converted.get_submodule(name)
        means = _Means()
        for value in stepper.inputs(node):
            answer = before_rounding(module, value)
            if answer is not None:
                means.add(answer, module)
        if means.weight:
            shifts[name] = (expected[name] - means.mean()).float()
            set_bias(module, shifts[name], backend)
    return shifts


def _float_means(
    reference: fx.GraphModule, layers: Sequence[str], batches: Sequence[Sequence[Any]]
) -> dict[str, Tensor]:
    found = {name: _Means() for name in layers}

    def hook_for(name: str, layer: nn.Module) -> Any:
        def hook(_: nn.Module, __: Any, output: Tensor) -> None:
            found[name].add(output, layer)

        return hook

    handles = []
    for name in layers:
        layer = product_inside(reference.get_submodule(name))
        handles.append(layer.register_forward_hook(hook_for(name, layer)))
    try:
        with torch.no_grad():
            for batch in batches:
                reference(*batch)
    finally:
        for handle in handles:
            handle.remove()
    return {name: means.mean() for name, means in found.items() if means.weight}


class _Means:
    """Means of channels over batches of different sizes."""

    def __init__(self) -> None:
        self.weight = 0
        self._sum: Tensor | float = 0.0

    def add(self, output: Tensor, layer: nn.Module) -> None:
        self._sum = self._sum + channel_means(output, layer) * output.numel()
        self.weight += output.numel()

    def mean(self) -> Tensor:
        assert isinstance(self._sum, Tensor)
        return self._sum / self.weight
