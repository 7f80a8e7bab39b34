"""In-place operators become functional: their tensor takes the new value for all later uses.

Writing through a view writes the tensor it views, by `slice_scatter` and the like; the other views
of that tensor are taken again when they are next read.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.operators.registry import Call
from compress.lift.values import Symbol, Value, View, shares_memory

Lift = Callable[[GraphBuilder, Call], Value]


def lift_in_place(builder: GraphBuilder, call: Call, lift_functional: Lift) -> Value:
    """Lifts a call that changes its first operand; `NotImplemented` when it changes none."""
    name = call.name
    if not name.endswith("_") or name.endswith("__"):
        return NotImplemented
    target = call.values[0]
    if not isinstance(target, Symbol) or not isinstance(target.value, Tensor):
        return NotImplemented
    if name == "aten::copy_":
        result = builder.call_method("expand_as", _as_tensor(builder, call["src"]), target)
    elif name == "aten::fill_":
        result = builder.call(torch.full_like, target, call["value"])
    elif name == "aten::zero_":
        result = builder.call(torch.zeros_like, target)
    else:
        result = lift_functional(builder, replace(call, name=name[:-1]))
    assert isinstance(result, Symbol)
    assert isinstance(result.value, Tensor)
    if result.value.dtype != target.value.dtype:
        result = builder.call_method("to", result, target.value.dtype)
    if result is not target:
        write_tensor(builder, name, target, result)
    return target


def _as_tensor(builder: GraphBuilder, value: Value) -> Symbol:
    if isinstance(value, Symbol) and value.is_tensor:
        return value
    return builder.number_tensor(value)


def write_tensor(builder: GraphBuilder, name: str, target: Symbol, result: Symbol) -> None:
    """Gives `target` its new value, and whatever it is a view of; `name` is what does it."""
    assert isinstance(result.value, Tensor)
    if target.is_attribute:
        raise UnsupportedOperator(
            f"{builder.place} changes its own state '{target.path}' with {name}, "
            "which cannot be lifted yet; export the model in eval mode."
        )
    if target.state is not None:
        writer = builder.cells.writer(*target.state)
        builder.call_accessor(f"write_{target.state[1]}", writer, [result])
    if target.view is None:
        target.rebind(result.value, result.node)
        return
    base, scatter = target.view.base, target.view.scatter
    if scatter is None:
        raise UnsupportedOperator(
            f"{builder.place} writes with {name} into a view of a tensor in a way that cannot be "
            "lifted yet."
        )
    builder.refresh(base)
    write_tensor(builder, name, base, scatter(result))
    target.adopt(result.value, result.node, base.aliases)


def note_view(builder: GraphBuilder, call: Call, result: Value, lift_functional: Lift) -> None:
    """Remembers of what a result is a view, for the case that one of the two is written to."""
    base = call.values[0] if call.values else None
    if not isinstance(base, Symbol) or not isinstance(base.value, Tensor) or result is base:
        return
    if call.name.endswith("_"):
        return
    if isinstance(result, list | tuple):
        for index, part in enumerate(result):
            if _is_view(part, base):
                part.view = _part_of(builder, call, base, result, index, lift_functional)
        return
    if not _is_view(result, base):
        return
    make = _SCATTERS.get(call.name)
    result.view = View(
        base,
        lambda: lift_functional(builder, call),
        None if make is None else lambda new: make(builder, call, base, new),
    )


def _is_view(value: Value, base: Symbol) -> bool:
    return (
        isinstance(value, Symbol)
        and isinstance(value.value, Tensor)
        and shares_memory(value.value, base.value)  # type: ignore[arg-type]
    )


def _part_of(
    builder: GraphBuilder,
    call: Call,
    base: Symbol,
    parts: Sequence[Symbol],
    index: int,
    lift_functional: Lift,
) -> View:
    """One of several views: of `chunk`, `split` or `unbind`."""
    dim = call.get("dim", 0)

    def scatter(new: Symbol) -> Symbol:
        if call.name == "aten::unbind":
            return builder.call(torch.select_scatter, base, new, dim, index)  # type: ignore[no-any-return]
        start: Value = 0
        for before in parts[:index]:
            start = builder.call(operator.add, start, builder.size(before, dim))
        end = builder.call(operator.add, start, builder.size(new, dim))
        return builder.call(torch.slice_scatter, base, new, dim, start, end, 1)  # type: ignore[no-any-return]

    return View(base, lambda: lift_functional(builder, call)[index], scatter)


Scatter = Callable[[GraphBuilder, Call, Symbol, Symbol], Symbol]


def _slice_scatter(builder: GraphBuilder, call: Call, base: Symbol, new: Symbol) -> Symbol:
    bounds = [call[name] for name in ("dim", "start", "end", "step")]
    return builder.call(torch.slice_scatter, base, new, *bounds)  # type: ignore[no-any-return]


def _select_scatter(builder: GraphBuilder, call: Call, base: Symbol, new: Symbol) -> Symbol:
    return builder.call(  # type: ignore[no-any-return]
        torch.select_scatter, base, new, call["dim"], call["index"]
    )


def _transpose_back(builder: GraphBuilder, call: Call, base: Symbol, new: Symbol) -> Symbol:
    return builder.call(  # type: ignore[no-any-return]
        torch.transpose, new, call["dim0"], call["dim1"]
    )


def _permute_back(builder: GraphBuilder, call: Call, base: Symbol, new: Symbol) -> Symbol:
    assert isinstance(base.value, Tensor)
    axes = [axis % base.value.dim() for axis in call["dims"]]
    inverse = [axes.index(axis) for axis in range(len(axes))]
    return builder.call(torch.permute, new, inverse)  # type: ignore[no-any-return]


def _reshape_back(builder: GraphBuilder, call: Call, base: Symbol, new: Symbol) -> Symbol:
    return builder.call_method("reshape_as", new, base)  # type: ignore[no-any-return]


_SCATTERS: dict[str, Scatter] = {
    "aten::slice": _slice_scatter,
    "aten::select": _select_scatter,
    "aten::transpose": _transpose_back,
    "aten::permute": _permute_back,
    "aten::view": _reshape_back,
    "aten::reshape": _reshape_back,
    "aten::flatten": _reshape_back,
    "aten::unsqueeze": _reshape_back,
    "aten::squeeze": _reshape_back,
}
