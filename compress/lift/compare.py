"""How far two outputs are apart, and where two graphs begin to differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from compress.errors import LiftMismatch
from compress.structure import map_tensors

TOLERANCE = 1e-5
"""Largest error allowed, relative to the largest element of the original's output."""


def relative_error(actual: Any, expected: Any) -> float:
    """Largest absolute difference of any pair of tensors over the largest expected element.

    Structures that do not match, other shapes and other integers count as infinitely far.
    """
    if isinstance(expected, Tensor):
        return _tensor_error(actual, expected)
    if isinstance(expected, dict):
        if not isinstance(actual, dict) or actual.keys() != expected.keys():
            return float("inf")
        pairs = [(actual[key], expected[key]) for key in expected]
    elif isinstance(expected, list | tuple):
        if not isinstance(actual, list | tuple) or len(actual) != len(expected):
            return float("inf")
        pairs = list(zip(actual, expected, strict=True))
    else:
        return 0.0 if actual == expected else float("inf")
    return max((relative_error(a, b) for a, b in pairs), default=0.0)


def _tensor_error(actual: Any, expected: Tensor) -> float:
    if (
        not isinstance(actual, Tensor)
        or actual.shape != expected.shape
        or actual.dtype != expected.dtype
    ):
        return float("inf")
    if torch.equal(actual, expected):
        return 0.0
    if not expected.is_floating_point():
        return float("inf")
    same = (actual == expected) | (actual.isnan() & expected.isnan())
    difference = torch.where(same, 0.0, actual - expected).abs().max()
    if not torch.isfinite(difference):
        return float("inf")
    finite = torch.where(expected.isfinite(), expected, 0.0).abs().max()
    return float(difference / finite.clamp_min(torch.finfo(expected.dtype).tiny))


def run_lifted(graph_module: fx.GraphModule, inputs: Sequence[Any]) -> Any:
    """Output of the lifted graph, without gradients."""
    with torch.no_grad():
        return graph_module(*(map_tensors(value, Tensor.clone) for value in inputs))


class _Recorder(fx.Interpreter):
    """Keeps what every node computed; stops at the first that raises."""

    def __init__(self, graph_module: fx.GraphModule) -> None:
        super().__init__(graph_module, garbage_collect_values=False)
        self.failed: fx.Node | None = None
        self.values: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        try:
            result = super().run_node(n)
        except Exception:
            self.failed = n
            raise
        self.values[n.name] = result
        return result


def first_difference(
    graph_module: fx.GraphModule, reference: fx.GraphModule, inputs: Sequence[Any]
) -> str:
    """Name of the first node whose value differs between two graphs lifted from one model.

    Args:
        graph_module: The graph that is wrong on `inputs`.
        reference: Lifted with `inputs` as its own example, hence right on them.
        inputs: Where they disagree.
    """
    mine, right = _Recorder(graph_module), _Recorder(reference)
    with torch.no_grad():
        for recorder in (right, mine):
            try:
                recorder.run(*(map_tensors(value, Tensor.clone) for value in inputs))
            except Exception:
                if recorder.failed is None:
                    raise
    for name, value in mine.values.items():
        if name not in right.values or relative_error(value, right.values[name]) > TOLERANCE:
            return name
    return mine.failed.name if mine.failed is not None else "output"


def mismatch(node: str, shapes: Sequence[Sequence[int]], error: float) -> LiftMismatch:
    """The error that names a node."""
    sizes = ", ".join("x".join(str(length) for length in shape) for shape in shapes)
    return LiftMismatch(
        f"The lifted model differs from the original at node '{node}' for an input of {sizes} "
        f"(relative error {error:.1e}); the model depends on its input in a way that cannot be "
        "lifted yet."
    )
