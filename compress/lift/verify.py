"""Compares the lifted graph with the original, and finds the first node that differs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.jit._fuser import optimized_execution

from compress.errors import LiftMismatch, ModelFailed, OutOfMemory

TOLERANCE = 1e-5
"""Largest error allowed, relative to the largest element of the original's output."""


class Oracle:
    """The original model, run without the executor's profiling, which makes first calls slow."""

    def __init__(self, module: torch.jit.ScriptModule) -> None:
        self.module = module

    def run(self, inputs: Sequence[Tensor]) -> Any:
        """Output for the inputs, which it may not change.

        Raises:
            ModelFailed: The model raised; carries its own message.
        OutOfMemory: There was no memory for it.
        """
        try:
            with torch.no_grad(), optimized_execution(False):
                return self.module(*(value.clone() for value in inputs))
        except (RuntimeError, torch.jit.Error, IndexError, ValueError) as error:
            if "allocate memory" in str(error) or "out of memory" in str(error):
                raise OutOfMemory(
                    "The model did not fit into memory; send smaller inputs or a smaller batch."
                ) from error
            raise ModelFailed(
                f"The model raised on the samples given: {clean_message(error)}"
            ) from error

    def accepts(self, inputs: Sequence[Tensor]) -> tuple[bool, Any]:
        """Whether the model runs on the inputs, and its output if so."""
        try:
            return True, self.run(inputs)
        except ModelFailed:
            return False, None


def clean_message(error: BaseException) -> str:
    """The model's own words: TorchScript puts a trace of the code, with its paths, around them."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if not lines[0].startswith("The following operation failed"):
        return lines[0]
    for line in reversed(lines):
        head, mark, rest = line.partition("Error: ")
        if mark and " " not in head:
            return rest
    return lines[-1]


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


def run_lifted(graph_module: fx.GraphModule, inputs: Sequence[Tensor]) -> Any:
    """Output of the lifted graph, without gradients."""
    with torch.no_grad():
        return graph_module(*(value.clone() for value in inputs))


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
    graph_module: fx.GraphModule, reference: fx.GraphModule, inputs: Sequence[Tensor]
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
                recorder.run(*(value.clone() for value in inputs))
            except Exception:
                if recorder.failed is None:
                    raise
    for name, value in mine.values.items():
        if name not in right.values or relative_error(value, right.values[name]) > TOLERANCE:
            return name
    return mine.failed.name if mine.failed is not None else "output"


def other_batch_sizes(inputs: Sequence[Tensor]) -> list[int]:
    """Two small batch sizes unlike the example's; none if the inputs share no first axis."""
    lengths = {value.shape[0] if value.dim() else None for value in inputs}
    if len(lengths) != 1 or None in lengths:
        return []
    return [size for size in (2, 3, 1) if size not in lengths][:2]


def resample(example: Tensor, batch: int, axes: Sequence[int]) -> Tensor:
    """Random values like the example's, `batch` rows, with these axes at about half.

    Floats spread alike; integers, which may be indices or flags, are drawn from the example.
    """
    shape = [batch, *example.shape[1:]]
    for axis in axes:
        shape[axis] = _about_half(shape[axis])
    generator = torch.Generator().manual_seed(batch)
    if example.is_floating_point():
        spread, centre = float(example.std(correction=0)), float(example.mean())
        noise = torch.randn(shape, generator=generator)
        return (noise * (spread or 1.0) + centre).to(example.dtype)
    if example.numel() == 0:
        return example.new_zeros(shape)
    return example.flatten()[torch.randint(0, example.numel(), shape, generator=generator)]


def _about_half(length: int) -> int:
    """Nets halve images, so a multiple of 32 stays one, and an even length even."""
    for step in (32, 2):
        if length % step == 0 and length > step:
            return max(step, length // 2 // step * step)
    return max(1, length // 2)


def mismatch(node: str, shape: Sequence[int], error: float) -> LiftMismatch:
    """The error that names a node."""
    size = "x".join(str(length) for length in shape)
    return LiftMismatch(
        f"The lifted model differs from the original at node '{node}' for an input of {size} "
        f"(relative error {error:.1e}); the model depends on its input in a way that cannot be "
        "lifted yet."
    )
