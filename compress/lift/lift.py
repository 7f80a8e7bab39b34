"""TorchScript in, trainable and quantizable FX graph out, from the file alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from compress.errors import BadSignature, UnsupportedOperator
from compress.lift.agreement import ByFormulas, ByNumbers
from compress.lift.arguments import place_arguments
from compress.lift.builder import GraphBuilder
from compress.lift.closing import finish
from compress.lift.compare import relative_error
from compress.lift.formulas import Formulas
from compress.lift.interpreter import Interpreter
from compress.lift.islands import IslandNeeded, Place
from compress.lift.load import forward_arguments
from compress.lift.oracle import Oracle
from compress.lift.outputs import as_original
from compress.lift.report import Lifted
from compress.lift.state import assigns
from compress.lift.summary import summarize
from compress.lift.values import ModuleRef, concrete
from compress.lift.verify import Proof, Verifier, Walk
from compress.structure import map_tensors, tensors_in

QUICK = 4 * 10**9
"""Operations that take less time than asking for formulas: a few hundredths of a second."""
_MAX_ISLANDS = 50
"""A model with more is not worth the time: it stays whole."""


def lift(
    module: torch.jit.ScriptModule,
    example_inputs: Sequence[Any],
    *,
    verify: bool = True,
    other_batches: int = 2,
) -> Lifted:
    """Lifts a TorchScript model into a `torch.fx.GraphModule`.

    Sizes stay symbolic; control flow is what the example inputs make it, which the graph checks
    when it runs. What hangs on the values of the data, keeps state or is not known stays
    TorchScript, as a module called from the graph. Modules and parameters keep their dotted
    names. The original is not changed and shares no memory with the result.

    Args:
        module: The model, in eval mode. One of half or double precision is lifted in float32.
        example_inputs: One value for each argument of `forward`, batch first: a tensor, a number,
            a text, None, or lists, tuples and dicts of them. Arguments with defaults may be left
            out at the end.
        verify: Compare with the original, also at other batch sizes and lengths: by running both,
            or, where that takes long, by the operators they call (`formulas`).
        other_batches: At how many other batch sizes.

    Raises:
        BadSignature: The number or kind of inputs does not fit `forward`.
        ModelFailed: The model itself raises on the example inputs. One that is too large to be run
            for each comparison may raise later, where that hangs on values: an index out of range.
        UnsupportedOperator: Not even an island can hold the model.
        LiftMismatch: Lifted and original disagree.
    """
    started_at = time.perf_counter()
    _check_inputs(module, example_inputs)
    working = _in_float32(module)
    inputs = [map_tensors(value, _to_float32) for value in example_inputs]
    lifting = _Lifting(working, inputs, Oracle(working), other_batches if verify else None)
    walk, islands, proof = lifting.without_numbers() or lifting.with_numbers()
    report = summarize(module, walk, islands)
    report.seconds = time.perf_counter() - started_at
    if proof is not None:
        report.max_relative_error, report.dynamic_dims = proof.worst, proof.dynamic_dims
    return Lifted(walk.graph_module, report, module)


Result = tuple[Walk, dict[Place, str], Proof | None]
"""A walk, the islands in it with their reasons, and what was proved."""


@dataclass(frozen=True)
class _Lifting:
    """One model being lifted.

    Attributes:
        module: In float32.
        inputs: In float32.
        oracle: Of the module.
        other_batches: At how many other batch sizes to compare; None not to compare at all.
    """

    module: torch.jit.ScriptModule
    inputs: list[Any]
    oracle: Oracle
    other_batches: int | None

    def without_numbers(self) -> Result | None:
        """Walk and compare by formulas; None where those are not enough, or running is as quick."""
        if assigns(self.module) or not _may_take_long(self.module, self.inputs):
            return None
        formulas = Formulas(self.module)
        agreement = ByFormulas(self.oracle, formulas)
        known = agreement.original(self.inputs)
        if known is None or known[2] < QUICK:
            return None
        expected, formula, _ = known
        with formulas.run(self.inputs) as given:
            try:
                walk = _walk(self.module, given, {}, expected)
            except (UnsupportedOperator, IslandNeeded):
                return None
            same = formulas.failure is None and formulas.of(walk.computed) == formula
        if formulas.failure is not None:
            return None
        if self.other_batches is None:
            return walk, {}, None
        try:
            error = 0.0 if same else agreement.numbers.error(walk.graph_module, self.inputs)
            verifier = Verifier(self.oracle, agreement, walk, self.inputs, self._walker({}))
            return walk, {}, verifier.verify(error, self.other_batches)
        except IslandNeeded:
            return None

    def with_numbers(self) -> Result:
        """Walk and compare on the example itself; anew with an island more as long as need be."""
        expected = self.oracle.run(self.inputs)
        agreement = ByNumbers(self.oracle)
        islands: dict[Place, str] = {}
        while True:
            try:
                walk = _walk(self.module, self.inputs, islands, expected)
                if self.other_batches is None:
                    return walk, islands, None
                verifier = Verifier(
                    self.oracle, agreement, walk, self.inputs, self._walker(islands)
                )
                error = relative_error(walk.computed, expected)
                return walk, islands, verifier.verify(error, self.other_batches)
            except IslandNeeded as needed:
                whole = len(islands) >= _MAX_ISLANDS
                islands[Place("") if whole else needed.place] = needed.reason

    def _walker(self, islands: Mapping[Place, str]) -> _Walker:
        return _Walker(self.module, dict(islands))


def _may_take_long(module: torch.jit.ScriptModule, inputs: Sequence[Any]) -> bool:
    """Whether forward may take many operations, going by sizes alone."""
    weights = sum(value.numel() for value in module.parameters())
    elements = sum(value.numel() for value in tensors_in(list(inputs)))
    return weights == 0 or weights * elements > QUICK  # a frozen model's are in its code


def _check_inputs(module: torch.jit.ScriptModule, inputs: Sequence[Any]) -> None:
    arguments = forward_arguments(module)
    required = sum(not argument.has_default for argument in arguments)
    if not required <= len(inputs) <= len(arguments):
        wanted = str(required) if required == len(arguments) else f"{required}-{len(arguments)}"
        names = ", ".join(argument.name for argument in arguments)
        raise BadSignature(
            f"forward takes {wanted} inputs ({names}), but {len(inputs)} were given."
        )
    for argument, value in zip(arguments, inputs, strict=False):
        takes_tensor = argument.type in ("Tensor", "Optional[Tensor]")
        wrong = isinstance(value, Tensor) != takes_tensor and value is not None
        if wrong or (value is None and argument.type == "Tensor"):
            raise BadSignature(
                f"Argument '{argument.name}' of forward is of type {argument.type}, but was given "
                f"a {type(value).__name__}."
            )


def _to_float32(value: Tensor) -> Tensor:
    value = value.detach()
    return value.float() if value.is_floating_point() else value


def _in_float32(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    tensors = [*module.parameters(), *module.buffers()]
    if all(value.dtype == torch.float32 for value in tensors if value.is_floating_point()):
        return module
    return copy.deepcopy(module).float()


def _walk(
    module: torch.jit.ScriptModule,
    inputs: Sequence[Any],
    islands: Mapping[Place, str],
    expected: Any,
) -> Walk:
    """Walks the model once; its output takes the structure of `expected`."""
    builder = GraphBuilder(module)
    interpreter = Interpreter(builder, islands)
    schema = module._c._get_method("forward").schema.arguments[1:]
    with torch.no_grad():
        given, assumed = place_arguments(builder, schema, inputs)
        output = interpreter.run_model(ModuleRef("", module), given)
        output = as_original(output, expected)
        graph_module = finish(builder, output)
    return Walk(graph_module, builder, dict(interpreter.operators), assumed, concrete(output))


@dataclass(frozen=True)
class _Walker:
    """Walks again on other inputs."""

    module: torch.jit.ScriptModule
    islands: Mapping[Place, str]

    def __call__(self, inputs: Sequence[Any], expected: Any) -> Walk | None:
        try:
            return _walk(self.module, inputs, self.islands, expected)
        except (UnsupportedOperator, IslandNeeded):  # it cannot be lifted at all for this size
            return None
