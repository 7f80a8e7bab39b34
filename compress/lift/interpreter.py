"""Walks a TorchScript graph node by node, and lifts what it meets."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from compress.errors import CompressError, ModelFailed, UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.operators import Call, lift_call
from compress.lift.values import FunctionRef, ModuleRef, Symbol, Value, concrete

MAX_ITERATIONS = 4096
"""A loop longer than this would unroll into a graph nobody can use."""

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

Frame = dict[str, Value]
Step = Callable[["Interpreter", torch._C.Node, list[Value], Frame, ModuleRef], Value]


class Interpreter:
    """One walk over one model.

    Attributes:
        builder: Receives the graph.
        operators: How often each operator was met.
    """

    def __init__(self, builder: GraphBuilder) -> None:
        self.builder = builder
        self.operators: Counter[str] = Counter()
        self._bodies: dict[str, torch._C.Graph] = {}

    def run_method(self, owner: ModuleRef, name: str, arguments: Sequence[Value]) -> Value:
        """Walks a method of a module of the original, with `self` left out of the arguments."""
        graph = owner.module._c._get_method(name).graph
        before = self.builder.scope
        self.builder.scope = owner.path
        results = self._run_graph(graph, [owner, *arguments], owner)
        self.builder.scope = before
        return results[0] if len(results) == 1 else tuple(results)

    def _run_graph(
        self, graph: torch._C.Graph, arguments: Sequence[Value], owner: ModuleRef
    ) -> list[Value]:
        names = [value.debugName() for value in graph.inputs()]
        frame: Frame = dict(zip(names, arguments, strict=True))
        self._run_nodes(graph, frame, owner)
        return [frame[value.debugName()] for value in graph.outputs()]

    def _run_nodes(
        self, block: torch._C.Graph | torch._C.Block, frame: Frame, owner: ModuleRef
    ) -> None:
        for node in block.nodes():
            inputs = [frame[value.debugName()] for value in node.inputs()]
            kind = node.kind()
            step = _STEPS.get(kind)
            try:
                if step is not None:
                    result = step(self, node, inputs, frame, owner)
                else:
                    self.operators[kind] += 1
                    result = lift_call(self.builder, bind_call(node, inputs, owner))
            except CompressError:
                raise
            except (RuntimeError, TypeError, ValueError, AssertionError, AttributeError,
                    KeyError, IndexError) as error:  # fmt: skip
                raise UnsupportedOperator(
                    f"{self.builder.place} uses {kind} in a way that cannot be lifted yet "
                    f"({type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''})."
                ) from error
            outputs = [value.debugName() for value in node.outputs()]
            if len(outputs) == 1:
                frame[outputs[0]] = result
            else:
                frame.update(zip(outputs, result or (), strict=True))

    # The control flow of the example is the control flow of the graph.

    def _if(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        taken, dead = node.blocks()
        if not concrete(inputs[0]):
            taken, dead = dead, taken
        if not any(inner.kind() == "prim::RaiseException" for inner in dead.nodes()):
            # a way that only raises is a check, not a choice
            self._decide(inputs[0], "branch")
        self._run_nodes(taken, frame, owner)
        results = [frame[value.debugName()] for value in taken.outputs()]
        return results[0] if len(results) == 1 else results

    def _loop(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        (body,) = node.blocks()
        trips, condition, *carried = inputs
        names = [value.debugName() for value in body.inputs()]
        limit = self.builder.fixed(trips)
        iteration = 0
        while iteration < limit and self._decide(condition, "loop"):
            if iteration >= MAX_ITERATIONS:
                raise UnsupportedOperator(
                    f"{self.builder.place} loops more than {MAX_ITERATIONS} times; "
                    "such a loop cannot be unrolled."
                )
            frame.update(zip(names, [iteration, *carried], strict=True))
            self._run_nodes(body, frame, owner)
            condition, *carried = [frame[value.debugName()] for value in body.outputs()]
            iteration += 1
        return carried[0] if len(carried) == 1 else carried

    def _decide(self, condition: Value, what: str) -> bool:
        if isinstance(condition, Symbol) and condition.is_tensor and not condition.is_constant:
            raise UnsupportedOperator(
                f"{self.builder.place} has a {what} that depends on the values of its data, "
                "which cannot be lifted yet."
            )
        return bool(self.builder.fixed(condition))

    def _call_method(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        receiver, *arguments = inputs
        if not isinstance(receiver, ModuleRef):
            raise self._unsupported(node, "calls a method of a script class")
        return self.run_method(receiver, node.s("name"), arguments)

    def _call_function(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        function, *arguments = inputs
        assert isinstance(function, FunctionRef)
        if function.name not in self._bodies:
            self._bodies[function.name] = function_body(function, node)
        results = self._run_graph(self._bodies[function.name], arguments, owner)
        return results[0] if len(results) == 1 else tuple(results)

    def _constant(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        output = node.output()
        if output.type().kind() == "FunctionType":
            return FunctionRef(str(output.type()), node)
        value = output.toIValue()
        return Symbol(value) if isinstance(value, Tensor) else value

    def _get_attribute(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        (holder,) = inputs
        name = node.s("name")
        if not isinstance(holder, ModuleRef):
            raise self._unsupported(node, "reads an attribute of a script class")
        path = holder.child_path(name)
        child = dict(holder.module.named_children()).get(name)
        if child is not None:
            assert isinstance(child, torch.jit.ScriptModule)
            return ModuleRef(path, child)
        return self._lift_attribute(path, holder.module._c.getattr(name))

    def _lift_attribute(self, path: str, value: Any) -> Value:
        if isinstance(value, Tensor):
            return self.builder.attribute(path, value)
        if isinstance(value, list | tuple):
            return type(value)(
                self._lift_attribute(f"{path}_{index}", item) for index, item in enumerate(value)
            )
        if isinstance(value, dict):
            return {k: self._lift_attribute(f"{path}_{k}", item) for k, item in value.items()}
        return value

    def _raise(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        raise ModelFailed(f"The model raised on the samples given: {concrete(inputs[0])}")

    def _state(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        raise self._unsupported(node, "keeps state between calls")

    def _unsupported(self, node: torch._C.Node, what: str) -> UnsupportedOperator:
        return UnsupportedOperator(
            f"{self.builder.place} {what} ({node.kind()}), which cannot be lifted yet."
        )


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


def _dictionary(
    walk: Interpreter, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
) -> Value:
    return dict(zip(inputs[::2], inputs[1::2], strict=True))


def _chunk(
    walk: Interpreter, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
) -> Value:
    return list(walk.builder.call(torch.chunk, inputs[0], node.i("chunks"), node.i("dim")))


def _is_instance(
    walk: Interpreter, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
) -> Value:
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
        raise walk._unsupported(node, "asks for a type")
    return any(checks[kind](value) for kind in kinds)


# Everything that is not an operator on values. `lambda` rows ignore all but their inputs.
_STEPS: dict[str, Step] = {
    "prim::If": Interpreter._if,
    "prim::Loop": Interpreter._loop,
    "prim::CallMethod": Interpreter._call_method,
    "prim::CallFunction": Interpreter._call_function,
    "prim::Constant": Interpreter._constant,
    "prim::GetAttr": Interpreter._get_attribute,
    "prim::SetAttr": Interpreter._state,
    "prim::CreateObject": Interpreter._state,
    "prim::RaiseException": Interpreter._raise,
    "prim::ListConstruct": lambda walk, node, inputs, frame, owner: list(inputs),
    "prim::TupleConstruct": lambda walk, node, inputs, frame, owner: tuple(inputs),
    "prim::DictConstruct": _dictionary,
    "prim::ListUnpack": lambda walk, node, inputs, frame, owner: _one_or_all(inputs[0]),
    "prim::TupleUnpack": lambda walk, node, inputs, frame, owner: _one_or_all(inputs[0]),
    "prim::TupleIndex": lambda walk, node, inputs, frame, owner: inputs[0][inputs[1]],
    "prim::TupleSlice": lambda walk, node, inputs, frame, owner: inputs[0][
        node.i("beg") : node.i("end")
    ],
    "prim::ConstantChunk": _chunk,
    "prim::isinstance": _is_instance,
    "prim::unchecked_cast": lambda walk, node, inputs, frame, owner: inputs[0],
    "prim::unchecked_unwrap_optional": lambda walk, node, inputs, frame, owner: inputs[0],
    "aten::_unwrap_optional": lambda walk, node, inputs, frame, owner: inputs[0],
    "prim::data": lambda walk, node, inputs, frame, owner: inputs[0],
    "prim::Uninitialized": lambda walk, node, inputs, frame, owner: None,
    "prim::Print": lambda walk, node, inputs, frame, owner: None,
    "aten::warn": lambda walk, node, inputs, frame, owner: None,
    "prim::Enter": lambda walk, node, inputs, frame, owner: None,
    "prim::Exit": lambda walk, node, inputs, frame, owner: None,
}


def _one_or_all(values: Sequence[Value]) -> Value:
    return values[0] if len(values) == 1 else list(values)
