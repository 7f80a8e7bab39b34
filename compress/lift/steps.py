"""What the nodes of a TorchScript graph mean that are neither control flow nor operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.errors import ModelFailed, UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.values import FunctionRef, ModuleRef, Symbol, Value, concrete, symbols_in

Step = Callable[[GraphBuilder, torch._C.Node, list[Value]], Value]

GRADIENT_MODE = object()
"""Stands for `torch.no_grad()` and its like: the lifted model decides itself what learns."""


def _constant(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    output = node.output()
    if output.type().kind() == "FunctionType":
        return FunctionRef(str(output.type()), node)
    value = output.toIValue()
    return Symbol(value) if isinstance(value, Tensor) else value


def _get_attribute(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    (holder,) = inputs
    name = node.s("name")
    if not isinstance(holder, ModuleRef):
        raise _unsupported(builder, node, "reads an attribute of a script class")
    path = holder.child_path(name)
    cells = builder.cells
    if cells.holds(holder.path, name):
        reader = cells.reader(holder.path, name)
        value = from_state(builder.call_accessor(f"read_{name}", reader, []))
        if isinstance(value, Symbol):
            value.state = (holder.path, name)
        return value
    child = dict(holder.module.named_children()).get(name)
    if child is not None:
        assert isinstance(child, torch.jit.ScriptModule)
        return ModuleRef(path, child)
    return lift_attribute(builder, path, holder.module._c.getattr(name))


def lift_attribute(builder: GraphBuilder, path: str, value: Any) -> Value:
    """An attribute of a module: its tensors become this graph's own."""
    if isinstance(value, Tensor):
        return builder.weights.attribute(path, value)
    if isinstance(value, list | tuple):
        return type(value)(
            lift_attribute(builder, f"{path}_{index}", item) for index, item in enumerate(value)
        )
    if isinstance(value, dict):
        return {k: lift_attribute(builder, f"{path}_{k}", item) for k, item in value.items()}
    return value


def _set_attribute(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    holder, value = inputs
    name = node.s("name")
    if not isinstance(holder, ModuleRef) or not builder.cells.holds(holder.path, name):
        raise _unsupported(builder, node, "sets an attribute of a script class")
    writer = builder.cells.writer(holder.path, name)
    builder.call_accessor(f"write_{name}", writer, [value])
    return None


def _raise(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    raise ModelFailed(f"The model raised on the samples given: {concrete(inputs[0])}")


def _create_object(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    kind = str(node.output().type())
    if "torch.autograd.grad_mode." in kind:
        return GRADIENT_MODE
    raise _unsupported(builder, node, f"makes a script class {kind.rpartition('.')[2]}")


def _dictionary(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    return dict(zip(inputs[::2], inputs[1::2], strict=True))


def _chunk(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    return list(builder.call(torch.chunk, inputs[0], node.i("chunks"), node.i("dim")))


def _is_instance(builder: GraphBuilder, node: torch._C.Node, inputs: list[Value]) -> Value:
    """Types are known: only `Optional` leaves the question open, and then None is the answer."""
    value = concrete(inputs[0])
    checks: dict[str, Callable[[Any], bool]] = {
        "TensorType": lambda v: isinstance(v, Tensor),
        "NoneType": lambda v: v is None,
        "IntType": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "FloatType": lambda v: isinstance(v, float),
        "BoolType": lambda v: isinstance(v, bool),
        "StringType": lambda v: isinstance(v, str),
        "ListType": lambda v: isinstance(v, list),
        "TupleType": lambda v: isinstance(v, tuple),
        "DictType": lambda v: isinstance(v, dict),
    }
    kinds = [kind.kind() for kind in node.tys("types")]
    if any(kind not in checks for kind in kinds):
        raise _unsupported(builder, node, "asks for a type")
    return any(checks[kind](value) for kind in kinds)


# Everything that is not an operator on values. `lambda` rows ignore all but their inputs.
STEPS: dict[str, Step] = {
    "prim::Constant": _constant,
    "prim::GetAttr": _get_attribute,
    "prim::SetAttr": _set_attribute,
    "prim::CreateObject": _create_object,
    "aten::wait": lambda builder, node, inputs: inputs[0],
    "prim::RaiseException": _raise,
    "prim::ListConstruct": lambda builder, node, inputs: list(inputs),
    "prim::TupleConstruct": lambda builder, node, inputs: tuple(inputs),
    "prim::DictConstruct": _dictionary,
    "prim::ListUnpack": lambda builder, node, inputs: _one_or_all(inputs[0]),
    "prim::TupleUnpack": lambda builder, node, inputs: _one_or_all(inputs[0]),
    "prim::TupleIndex": lambda builder, node, inputs: inputs[0][inputs[1]],
    "prim::TupleSlice": lambda builder, node, inputs: inputs[0][node.i("beg") : node.i("end")],
    "prim::ConstantChunk": _chunk,
    "prim::isinstance": _is_instance,
    "prim::unchecked_cast": lambda builder, node, inputs: inputs[0],
    "prim::unchecked_unwrap_optional": lambda builder, node, inputs: inputs[0],
    "aten::_unwrap_optional": lambda builder, node, inputs: inputs[0],
    "prim::data": lambda builder, node, inputs: inputs[0],
    "prim::Uninitialized": lambda builder, node, inputs: None,
    "prim::Print": lambda builder, node, inputs: None,
    "aten::warn": lambda builder, node, inputs: None,
    "prim::Enter": lambda builder, node, inputs: None,
    "prim::Exit": lambda builder, node, inputs: None,
}


def _one_or_all(values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else list(values)


def from_state(values: Value) -> Value:
    """Marks what comes from state: what the last call left decides its size."""
    for symbol in symbols_in(values):
        symbol.from_data = True
    return values


def _unsupported(builder: GraphBuilder, node: torch._C.Node, what: str) -> UnsupportedOperator:
    return UnsupportedOperator(f"{builder.place} {what} ({node.kind()}), which cannot be lifted.")
