"""Walks a TorchScript graph node by node, and lifts what it meets."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import torch

from compress.errors import UnsupportedOperator
from compress.lift.builder import GraphBuilder
from compress.lift.carve import NotCarvable, Region, carve
from compress.lift.islands import IslandNeeded, Place
from compress.lift.loops import is_counted, lift_loop
from compress.lift.operators import lift_call, write_tensor
from compress.lift.schema import bind_call, function_body
from compress.lift.steps import GRADIENT_MODE, STEPS, from_state, lift_attribute
from compress.lift.values import FunctionRef, ModuleRef, Symbol, Value, concrete

MAX_ITERATIONS = 4096
"""A loop longer than this would unroll into a graph nobody can use."""

Frame = dict[str, Value]
ControlStep = Callable[["Interpreter", torch._C.Node, list[Value], Frame, ModuleRef], Value]

_ERRORS = (
    RuntimeError, TypeError, ValueError, AssertionError, AttributeError, KeyError, IndexError,
    NotImplementedError, ZeroDivisionError, OverflowError,
)  # fmt: skip


class Interpreter:
    """One walk over one model.

    Attributes:
        builder: Receives the graph.
        islands: Places that stay TorchScript, with the reason.
        operators: How often each operator was met.
    """

    def __init__(self, builder: GraphBuilder, islands: Mapping[Place, str]) -> None:
        self.builder = builder
        self.islands = islands
        self.operators: Counter[str] = Counter()
        self._bodies: dict[str, torch._C.Graph] = {}
        self._code: list[str] = []
        self._calls: list[str] = []
        self._loops_tried = 0

    def run_model(self, root: ModuleRef, arguments: Sequence[Value]) -> Value:
        """Walks the model's forward, or leaves it whole if the model itself is an island."""
        place = Place("")
        if place in self.islands:
            return self._call_island(place, root.module, arguments)
        return self.run_method(root, "forward", arguments)

    def run_method(self, owner: ModuleRef, name: str, arguments: Sequence[Value]) -> Value:
        """Walks a method of a module of the original, with `self` left out of the arguments."""
        graph = owner.module._c._get_method(name).graph
        before = self.builder.scope
        self.builder.scope = owner.path
        self._code.append(f"{owner.path}:{name}")
        if name == "forward":
            self._calls.append(owner.path)
        results = self._run_graph(graph, [owner, *arguments], owner)
        if name == "forward":
            self._calls.pop()
        self._code.pop()
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
        nodes = list(block.nodes())
        index = 0
        while index < len(nodes):
            place = Place(owner.path, "/".join([*self._code, str(index)]))
            self.builder.at = place
            try:
                if place in self.islands:
                    index += self._run_region(place, block, nodes, index, frame)
                else:
                    self._run_node(nodes[index], frame, owner, str(index))
                    index += 1
            except UnsupportedOperator as error:
                raise self._leave(place, nodes[index], error) from error

    def _run_node(self, node: torch._C.Node, frame: Frame, owner: ModuleRef, position: str) -> None:
        inputs = [frame[value.debugName()] for value in node.inputs()]
        kind = node.kind()
        control, step = _CONTROL.get(kind), STEPS.get(kind)
        self._code.append(position)
        try:
            if control is not None:
                result = control(self, node, inputs, frame, owner)
            elif step is not None:
                result = step(self.builder, node, inputs)
            else:
                self.operators[kind] += 1
                result = lift_call(self.builder, bind_call(node, inputs, owner))
        except _ERRORS as error:
            text = str(error).splitlines()[0] if str(error) else ""
            raise UnsupportedOperator(
                f"{self.builder.place} uses {kind} in a way that cannot be lifted "
                f"({type(error).__name__}: {text})."
            ) from error
        self._code.pop()
        outputs = [value.debugName() for value in node.outputs()]
        if len(outputs) == 1:
            frame[outputs[0]] = result
        elif outputs:  # else it only changed what it was given, as `d[key] = value` does
            frame.update(zip(outputs, result or (), strict=True))

    # What cannot be lifted goes on as TorchScript.

    def _leave(self, place: Place, node: torch._C.Node, error: UnsupportedOperator) -> Exception:
        """Returns what to raise so that the walk begins anew, with the smallest island more."""
        if place not in self.islands and node.kind() in ("prim::If", "prim::Loop"):
            return IslandNeeded(place, error.message)  # unless it then proves not to be carvable
        if self._loops_tried:
            return error  # there is another way
        for path in reversed(self._calls):
            if Place(path) not in self.islands:
                return IslandNeeded(Place(path), error.message)
        return error

    def _run_region(
        self,
        place: Place,
        block: torch._C.Graph | torch._C.Block,
        nodes: Sequence[torch._C.Node],
        index: int,
        frame: Frame,
    ) -> int:
        """Emits a region of nodes as one call; returns how many they are."""
        try:
            region = carve(block, nodes, index, frame, self.builder.cells)
        except NotCarvable as error:
            raise UnsupportedOperator(f"{self.builder.place} {error}.") from error
        arguments = [
            frame[source]
            if isinstance(source, str)
            else lift_attribute(
                self.builder,
                source[0].child_path(source[1]),
                source[0].module._c.getattr(source[1]),
            )
            for source in region.arguments
        ]
        names = [*region.outputs, *region.changed]
        if names or region.keeps_state:
            results = self._call_region(place, region, arguments)
            if len(names) == 1:
                results = (results,)
            elif not names:
                results = ()
            count = len(region.outputs)
            frame.update(zip(region.outputs, results[:count], strict=True))
            for name, result in zip(region.changed, results[count:], strict=True):
                write_tensor(self.builder, "a loop or branch", frame[name], result)
        return region.length

    def _attribute(self, holder: ModuleRef, name: str) -> Value:
        return lift_attribute(self.builder, holder.child_path(name), holder.module._c.getattr(name))

    def _call_region(self, place: Place, region: Region, arguments: Sequence[Value]) -> Value:
        try:
            results = self.builder.call_region(place, region.module, arguments)
        except _ERRORS as error:
            raise UnsupportedOperator(
                f"{self.builder.place} cannot be called by itself ({type(error).__name__})."
            ) from error
        return from_state(results) if region.keeps_state else results

    def _call_island(
        self, place: Place, module: torch.jit.ScriptModule, arguments: Sequence[Value]
    ) -> Value:
        try:
            return self.builder.call_island(place, module, arguments)
        except _ERRORS as error:
            raise UnsupportedOperator(
                f"{self.builder.place} cannot be called by itself ({type(error).__name__})."
            ) from error

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
        if isinstance(trips, Symbol) and not trips.is_constant and is_counted(body):
            after = self._lift_loop(body, trips, carried, frame, owner)
            if after is not None:
                return after[0] if len(after) == 1 else after
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

    def _lift_loop(
        self,
        body: torch._C.Block,
        trips: Value,
        carried: Sequence[Value],
        frame: Frame,
        owner: ModuleRef,
    ) -> list[Value] | None:
        """Emits a loop of any length; None where the body does not allow it, and it must unroll."""
        outer, scope = self.builder, self.builder.scope
        code, calls = list(self._code), list(self._calls)

        def run(inner: GraphBuilder, inside: Frame) -> None:
            self.builder = inner
            self._run_nodes(body, inside, owner)
            self.builder = outer

        self._loops_tried += 1
        try:
            return lift_loop(outer, body, trips, carried, frame, run)
        except UnsupportedOperator:
            self.builder, self._code, self._calls = outer, code, calls
            outer.scope = scope
            return None
        finally:
            self._loops_tried -= 1

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
        if receiver is GRADIENT_MODE:
            return None
        if not isinstance(receiver, ModuleRef):
            raise UnsupportedOperator(
                f"{self.builder.place} calls a method of a script class, which cannot be lifted."
            )
        place = Place(receiver.path)
        if place in self.islands and node.s("name") == "forward":
            return self._call_island(place, receiver.module, arguments)
        return self.run_method(receiver, node.s("name"), arguments)

    def _call_function(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        function, *arguments = inputs
        assert isinstance(function, FunctionRef)
        if function.name not in self._bodies:
            self._bodies[function.name] = function_body(function, node)
        self._code.append(function.name)
        results = self._run_graph(self._bodies[function.name], arguments, owner)
        self._code.pop()
        return results[0] if len(results) == 1 else tuple(results)

    def _fork(
        self, node: torch._C.Node, inputs: list[Value], frame: Frame, owner: ModuleRef
    ) -> Value:
        (result,) = self._run_graph(node.g("Subgraph"), inputs, owner)
        return result


# What needs the walk itself; all else is in `steps`.
_CONTROL: dict[str, ControlStep] = {
    "prim::If": Interpreter._if,
    "prim::Loop": Interpreter._loop,
    "prim::CallMethod": Interpreter._call_method,
    "prim::CallFunction": Interpreter._call_function,
    "prim::fork": Interpreter._fork,
}
