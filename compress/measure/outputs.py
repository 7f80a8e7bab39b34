"""A model's outputs as a flat list of tensors, whatever structure they come in."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from compress.errors import BadOutput


def output_tensors(output: Any) -> list[Tensor]:
    """Return all tensors of tuples, named tuples, lists and dicts, in order.

    None, numbers and texts in between hold none.

    Raises:
        BadOutput: Something that is neither of these.
    """
    if isinstance(output, Tensor):
        return [output.dequantize() if output.is_quantized else output]
    if isinstance(output, dict):
        return [tensor for value in output.values() for tensor in output_tensors(value)]
    if isinstance(output, tuple | list):
        return [tensor for value in output for tensor in output_tensors(value)]
    if output is None or isinstance(output, bool | int | float | str):
        return []
    raise BadOutput(
        f"Forward returns a {type(output).__name__}; return tensors, or tuples, lists or dicts "
        "of them."
    )


def primary_output(output: Any) -> Tensor:
    """Return the tensor that quality is judged on: the first floating-point one.

    Raises:
        BadOutput: There is none.
    """
    for tensor in output_tensors(output):
        if tensor.is_floating_point():
            return tensor.float()
    raise BadOutput("Forward returns no floating-point tensor, so nothing can be compared.")


def same_structure(left: Any, right: Any) -> bool:
    """Whether two outputs nest alike and their tensors agree in shape and element type.

    Named tuples agree in the names of their fields, too; each load makes its own class of them.
    """
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.shape == right.shape and left.dtype == right.dtype
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same_structure(left[k], right[k]) for k in left)
    if isinstance(left, tuple | list) and isinstance(right, tuple | list):
        return (
            isinstance(left, tuple) == isinstance(right, tuple)
            and getattr(left, "_fields", None) == getattr(right, "_fields", None)
            and len(left) == len(right)
            and all(same_structure(a, b) for a, b in zip(left, right, strict=True))
        )
    return type(left) is type(right)


def class_axis(answer: Tensor, label: Tensor | None = None) -> int | None:
    """Return the axis of `answer` that can be read as classes, or None.

    By the labels' shape where there are labels: `[samples, classes, …]` as in torch's
    cross_entropy, else `[samples, …, classes]`. Without labels it is the last axis of three, as
    transformers answer for each token, and axis 1 of two, four and more.
    """
    if answer.dim() < 2:
        return None
    axis = answer.dim() - 1 if answer.dim() == 3 else 1
    if label is not None:
        axes = [1, answer.dim() - 1]
        shaped = [a for a in axes if list(label.shape) == _without(answer, a)]
        sized = [a for a in axes if label.numel() * answer.shape[a] == answer.numel()]
        axis = next(iter(shaped + sized), 1)
    return axis if answer.shape[axis] >= 2 else None


def _without(answer: Tensor, axis: int) -> list[int]:
    return [length for index, length in enumerate(answer.shape) if index != axis]
