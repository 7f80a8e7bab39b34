"""Scales of all quantized values of an int8 graph, found by running it once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

_DTYPES = {torch.quint8: torch.uint8, torch.qint8: torch.int8}


@dataclass(frozen=True)
class Scale:
    """Of a quantized value of the int8 graph."""

    scale: float
    zero_point: int
    dtype: torch.dtype


class Recorder(fx.Interpreter):
    """Runs the int8 graph once.

    Attributes:
        scales: Node to the scale of its value, if that is quantized.
        axes: Node to the number of its value's axes.
    """

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module)
        self.scales: dict[fx.Node, Scale] = {}
        self.axes: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        """Compute a node, and note what it gave."""
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.axes[n] = value.dim()
            if value.is_quantized and value.qscheme() == torch.per_tensor_affine:
                self.scales[n] = Scale(value.q_scale(), value.q_zero_point(), _DTYPES[value.dtype])
        return value
