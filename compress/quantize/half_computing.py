"""Weights and activations in 16 bits: for GPUs, whose units for them are several times as fast.

Arguments and outputs keep their element types, so the file drops in where the old one was.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from compress.devices import CPU, bring, move
from compress.errors import NothingToCompress
from compress.out_of_memory import lacks_memory
from compress.quantize.drafting import Quantized
from compress.quantize.half import to_float32
from compress.quantize.islands import keeps_state, renew_islands
from compress.quantize.narrowing import HALVES, TYPES, HalfPrecision, fits
from compress.structure import map_tensors


def to_half_computing(
    graph_module: fx.GraphModule,
    probe: Sequence[Any],
    islands: Mapping[str, str] | None = None,
    precision: HalfPrecision = "fp16",
    device: torch.device = CPU,
) -> Quantized:
    """Return a copy on the device that holds its weights and computes in 16 bits.

    The graph is run once, and wherever a wider number comes up - an argument, a constant, a sum
    that the code wants in float32 - it is narrowed from there on. An operator that has no kernel
    for 16 bits computes in float32.

    Args:
        graph_module: Left as it is.
        probe: One batch of inputs in float32, on the processor.
        islands: Name to the reason why a module stays TorchScript.
        precision: `fp16` or `bf16`.
        device: Where the copy is to compute.

    Raises:
        NothingToCompress: A weight is beyond the range of float16, or the model does not compute in
            16 bits there; says why.
    """
    folded = to_float32(graph_module, islands)
    model = folded.graph_module
    name, dtype = TYPES[precision]
    _check_range(model, name, dtype)
    move(model, device)
    model.to(dtype)
    pristine = copy.deepcopy(model) if keeps_state(model) else None
    narrowing = _Narrowing(model, dtype)
    try:
        with torch.no_grad():
            narrowing.run(*bring(list(probe), device))
    except (RuntimeError, NotImplementedError) as error:
        if lacks_memory(error):
            raise
        raise NothingToCompress(
            f"The model does not compute in {name} on '{device.type}': "
            f"{str(error).splitlines()[0][:200]} Use precision 'fp32'"
            f"{' or bf16' if precision == 'fp16' else ''}."
        ) from error
    if pristine is not None:  # the file is to be as if nobody had ever called it
        renew_islands(model, pristine)
    narrowing.write()
    table = [
        replace(layer, precision=precision, size_bytes=(before, before // 2))
        for layer in folded.layers for before in layer.size_bytes[:1]
    ]  # fmt: skip
    return Quantized(model, table)


def to_any_half(
    graph_module: fx.GraphModule,
    probe: Sequence[Any],
    islands: Mapping[str, str] | None,
    device: torch.device,
    warn: Callable[[str], None],
) -> tuple[Quantized, HalfPrecision]:
    """Return a copy in float16, or in bfloat16 if its numbers are too large for that, and in which.

    Args:
        graph_module: As for `to_half_computing`, and the others, too.
        probe: As there.
        islands: As there.
        device: As there.
        warn: Is told why it does not compute in one of them.

    Raises:
        NothingToCompress: It computes in neither.
    """
    *others, last = HALVES
    for precision in others:
        try:
            return to_half_computing(graph_module, probe, islands, precision, device), precision
        except NothingToCompress as error:
            warn(error.message)
    return to_half_computing(graph_module, probe, islands, last, device), last


class _Narrowing(fx.Interpreter):
    """Runs a graph in 16 bits, and notes which of its nodes take or give more."""

    def __init__(self, model: fx.GraphModule, dtype: torch.dtype) -> None:
        super().__init__(model)
        self._model, self._dtype = model, dtype
        self._floats: set[fx.Node] = set()
        self._give_more: list[fx.Node] = []
        self._take_more: list[fx.Node] = []

    def run_node(self, n: fx.Node) -> Any:
        """Run a node, in float32 if it has no 16 bits; what it gives is narrowed if it is wider."""
        try:
            value = super().run_node(n)
        except (RuntimeError, NotImplementedError):
            if not n.op.startswith("call_"):
                raise
            value = self._run_wide(n)
        if not isinstance(value, Tensor) or not value.is_floating_point() or n.op == "output":
            return value
        self._floats.add(n)
        if value.dtype == self._dtype:
            return value
        self._give_more.append(n)
        return value.to(self._dtype)

    def _run_wide(self, n: fx.Node) -> Any:
        """Run an operator that has no kernel for 16 bits, with its own weights widened."""
        if n.op == "call_module":
            self._module(n).float()
        args, kwargs = self.fetch_args_kwargs_from_env(n)
        wide = map_tensors((args, kwargs), _widen)
        value = getattr(self, n.op)(n.target, *wide)
        self._take_more.append(n)
        return value

    def _module(self, n: fx.Node) -> nn.Module:
        return self._model.get_submodule(str(n.target))

    def write(self) -> None:
        """Write the casts into the graph; what it returns is float32, as before."""
        graph = self._model.graph
        for node in self._take_more:
            if node.op == "call_module":
                self._module(node).float()
            with graph.inserting_before(node):
                wide = {
                    given: graph.call_method("float", (given,))
                    for given in node.all_input_nodes if given in self._floats
                }  # fmt: skip
            for given, widened in wide.items():
                node.replace_input_with(given, widened)
        for node in self._give_more:
            users = list(node.users)
            with graph.inserting_after(node):
                narrow = graph.call_method("to", (node, self._dtype))
            for user in users:
                user.replace_input_with(node, narrow)
            self._floats.add(narrow)
        output = graph.output_node()
        with graph.inserting_before(output):
            output.args = fx.map_arg(
                output.args,
                lambda node: graph.call_method("float", (node,)) if node in self._floats else node,
            )
        self._model.recompile()


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _check_range(model: fx.GraphModule, name: str, dtype: torch.dtype) -> None:
    for path, value in model.state_dict().items():
        if value.is_floating_point() and not fits(value, dtype):
            raise NothingToCompress(
                f"The weight '{path}' is beyond the range of {name}. Use precision 'bf16' or "
                "'fp32'."
            )
