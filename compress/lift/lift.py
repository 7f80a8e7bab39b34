"""TorchScript in, trainable and quantizable FX graph out, from the file alone."""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence

import torch
from torch import Tensor

from compress.errors import BadSignature, CompressError, LiftMismatch
from compress.lift.builder import GraphBuilder
from compress.lift.interpreter import Interpreter
from compress.lift.load import forward_arguments
from compress.lift.report import Lifted, LiftReport
from compress.lift.values import ModuleRef, concrete
from compress.lift.verify import (
    TOLERANCE,
    Oracle,
    first_difference,
    mismatch,
    other_batch_sizes,
    relative_error,
    resample,
    run_lifted,
)

# Axes tried together, by rank: tokens; sequences with features last or first; images; volumes.
_VARIABLE_AXES: dict[int, tuple[tuple[int, ...], ...]] = {
    2: ((1,),), 3: ((1,), (2,)), 4: ((2, 3),), 5: ((2, 3, 4),),
}  # fmt: skip


def lift(
    module: torch.jit.ScriptModule, example_inputs: Sequence[Tensor], *, verify: bool = True
) -> Lifted:
    """Lifts a TorchScript model into a `torch.fx.GraphModule`.

    Sizes stay symbolic; control flow is what the example inputs make it. Modules and parameters
    keep their dotted names. The original is not changed and shares no memory with the result.

    Args:
        module: The model, in eval mode. One of half or double precision is lifted in float32.
        example_inputs: One tensor for each argument of `forward`, batch first.
        verify: Compare with the original, also at other batch sizes.

    Raises:
        BadSignature: The number or kind of inputs does not fit `forward`.
        ModelFailed: The model itself raises on the example inputs.
        UnsupportedOperator: The model holds what cannot be lifted yet.
        LiftMismatch: Lifted and original disagree.
    """
    started_at = time.perf_counter()
    _check_inputs(module, example_inputs)
    working = _in_float32(module)
    inputs = [_to_float32(value.detach()) for value in example_inputs]
    oracle = Oracle(working)
    expected = oracle.run(inputs)
    lifted, report, computed = _walk(working, inputs)
    worst = 0.0
    dynamic: list[list[int]] = []
    if verify:
        worst, dynamic = _verify(lifted, oracle, inputs, expected, computed)
    names = [argument.name for argument in forward_arguments(module)]
    report = LiftReport(
        operators=report.operators,
        guards=report.guards,
        modules=report.modules,
        dynamic_dims={names[index]: axes for index, axes in enumerate(dynamic) if axes},
        parameters=sum(value.numel() for value in module.parameters()),
        parameters_lifted=sum(value.numel() for value in lifted.parameters()),
        max_relative_error=worst,
        seconds=time.perf_counter() - started_at,
    )
    return Lifted(lifted, report, module)


def _check_inputs(module: torch.jit.ScriptModule, inputs: Sequence[Tensor]) -> None:
    arguments = forward_arguments(module)
    required = sum(not argument.has_default for argument in arguments)
    if not required <= len(inputs) <= len(arguments):
        wanted = str(required) if required == len(arguments) else f"{required}-{len(arguments)}"
        names = ", ".join(argument.name for argument in arguments)
        raise BadSignature(
            f"forward takes {wanted} inputs ({names}), but {len(inputs)} were given."
        )
    for argument in arguments[: len(inputs)]:
        if argument.type not in ("Tensor", "Optional[Tensor]"):
            raise BadSignature(
                f"Argument '{argument.name}' of forward is of type {argument.type}; "
                "only tensors can be given."
            )


def _to_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _in_float32(module: torch.jit.ScriptModule) -> torch.jit.ScriptModule:
    tensors = [*module.parameters(), *module.buffers()]
    if all(value.dtype == torch.float32 for value in tensors if value.is_floating_point()):
        return module
    return copy.deepcopy(module).float()


def _walk(
    module: torch.jit.ScriptModule, inputs: Sequence[Tensor]
) -> tuple[torch.fx.GraphModule, LiftReport, object]:
    """Returns the graph, its report, and its output for the inputs."""
    builder = GraphBuilder(module)
    walk = Interpreter(builder)
    root = ModuleRef("", module)
    schema = module._c._get_method("forward").schema.arguments[1:]
    with torch.no_grad():
        given = [
            builder.placeholder(argument.name, value)
            for argument, value in zip(schema, inputs, strict=False)
        ]
        left_out = [argument.default_value for argument in schema[len(inputs) :]]
        output = walk.run_method(root, "forward", [*given, *left_out])
        graph_module = builder.finish(output)
    report = LiftReport(
        operators=dict(sorted(walk.operators.items())),
        guards=list(dict.fromkeys(builder.guards)),
        modules={name: type(held).__name__ for name, held in builder.modules.items()},
        parameters=0,
        parameters_lifted=0,
    )
    return graph_module, report, concrete(output)


def _verify(
    lifted: torch.fx.GraphModule,
    oracle: Oracle,
    inputs: Sequence[Tensor],
    expected: object,
    computed: object,
) -> tuple[float, list[list[int]]]:
    """Returns the worst error, and for each input the axes shown to vary.

    Other batch sizes are tried on smaller images where the model takes them: that proves both at
    a fraction of the time.
    """
    worst = _judge(lifted, oracle, inputs, expected, computed)
    sizes = other_batch_sizes(inputs)
    axes: list[int] = []
    if len(inputs) == 1 and sizes:
        axes = _other_varying_axes(lifted, oracle, inputs[0], sizes[0])
    proved = {sizes[0]} if axes else set()
    for size in sizes:
        if size in proved:
            continue
        for lengths in (axes, []) if axes else ([],):
            given = [resample(value, size, lengths) for value in inputs]
            accepted, reference = oracle.accepts(given)
            if accepted:
                actual = _run(lifted, given)
                worst = max(worst, _judge(lifted, oracle, given, reference, actual))
                proved.add(size)
                break
    if not proved:
        worst = max(worst, _judge(lifted, oracle, inputs, expected, _run(lifted, inputs)))
    batch = [0] if proved else []
    return worst, [[*batch, *axes] for _ in inputs]


def _other_varying_axes(
    lifted: torch.fx.GraphModule, oracle: Oracle, example: Tensor, batch: int
) -> list[int]:
    """Axes of an image or a sequence that original and lifted agree on at another length."""
    varying: list[int] = []
    for axes in _VARIABLE_AXES.get(example.dim(), ()):
        other = [resample(example, batch, axes)]
        accepted, expected = oracle.accepts(other)
        # where only the original takes the size or they differ, the size is fixed
        if accepted and relative_error(_run(lifted, other), expected) <= TOLERANCE:
            varying += axes
    return sorted(varying)


def _run(lifted: torch.fx.GraphModule, inputs: Sequence[Tensor]) -> object:
    """Output of the lifted graph; the error itself where it raises, which equals no output."""
    try:
        return run_lifted(lifted, inputs)
    except RuntimeError as error:
        return error


def _judge(
    lifted: torch.fx.GraphModule,
    oracle: Oracle,
    inputs: Sequence[Tensor],
    expected: object,
    actual: object,
) -> float:
    """The error of `actual`; raises `LiftMismatch` where it is too large."""
    error = relative_error(actual, expected)
    if error <= TOLERANCE:
        return error
    if relative_error(oracle.run(inputs), expected) > TOLERANCE:
        raise LiftMismatch(
            "The model gives another output each time for one input, so nothing can be compared "
            "with it; export it in eval mode and without random operators."
        )
    try:
        reference, _, _ = _walk(oracle.module, inputs)
        node = first_difference(lifted, reference, inputs)
    except CompressError:  # the model cannot be lifted at all for this size
        node = "output"
    raise mismatch(node, inputs[0].shape if inputs else (), error)
