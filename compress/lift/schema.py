"""Reads what a TorchScript node calls: the schema of an operator, the body of a function."""

from __future__ import annotations

import functools
from typing import Any

import torch

from compress.lift.operators import Call
from compress.lift.values import FunctionRef, ModuleRef, Value

# ScalarType, MemoryFormat and Layout are plain ints in TorchScript.
_DTYPES = (
    torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.float16, torch.float32,
    torch.float64, torch.complex32, torch.complex64, torch.complex128, torch.bool, torch.qint8,
    torch.quint8, torch.qint32, torch.bfloat16,
)  # fmt: skip
_MEMORY_FORMATS = (
    torch.contiguous_format, torch.preserve_format, torch.channels_last, torch.channels_last_3d,
)  # fmt: skip
_ENUMS: dict[str, tuple[Any, ...]] = {
    "dtype": _DTYPES, "memory_format": _MEMORY_FORMATS, "layout": (torch.strided,),
}  # fmt: skip


def bind_call(node: torch._C.Node, inputs: list[Value], owner: ModuleRef) -> Call:
    """Binds the inputs of an operator node to the argument names of its schema."""
    overload, names, keyword_only, defaults = _read_schema(node.schema())
    if len(names) < len(inputs):  # aten::format takes any number
        names = (*names, *(f"argument_{index}" for index in range(len(names), len(inputs))))
    arguments = {name: _named(name, value) for name, value in zip(names, inputs, strict=False)}
    return Call(node.kind(), overload, arguments, keyword_only, defaults, owner)


@functools.lru_cache(maxsize=4096)
def _read_schema(
    text: str,
) -> tuple[str, tuple[str, ...], frozenset[str], dict[str, Any]]:
    if not text or text.startswith("(no schema)"):
        return "", (), frozenset(), {}
    schema = torch._C.parse_schema(text)
    arguments = schema.arguments
    return (
        schema.overload_name,
        tuple(argument.name for argument in arguments),
        frozenset(argument.name for argument in arguments if argument.kwarg_only),
        {a.name: a.default_value for a in arguments if a.has_default_value()},
    )


def _named(name: str, value: Value) -> Value:
    kinds = _ENUMS.get(name)
    if kinds is not None and isinstance(value, int) and not isinstance(value, bool):
        return kinds[value]
    return value


def function_body(function: FunctionRef, call: torch._C.Node) -> torch._C.Graph:
    """The graph of a TorchScript function, got by inlining one call of it into an empty graph."""
    graph = torch._C.Graph()
    constant = graph.createClone(  # type: ignore[attr-defined]
        function.constant, lambda value: value
    )
    graph.appendNode(constant)
    arguments = []
    for value in list(call.inputs())[1:]:
        argument = graph.addInput()
        argument.setType(value.type())
        arguments.append(argument)
    results = list(call.outputs())
    clone = graph.create("prim::CallFunction", [constant.output(), *arguments], len(results))
    graph.appendNode(clone)
    for mine, original in zip(clone.outputs(), results, strict=True):
        mine.setType(original.type())
        graph.registerOutput(mine)
    torch._C._jit_pass_inline(graph)
    return graph
