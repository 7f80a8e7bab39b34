"""What is exported, and what a file must prove before it counts: the same for every format."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.devices import CPU
from compress.errors import ExportFailed
from compress.export.dtypes import match_dtypes
from compress.export.runners import first_line
from compress.lift import is_loop
from compress.measure.fidelity import NoiseMeter
from compress.measure.outputs import output_tensors, same_structure
from compress.quantize.islands import island_names
from compress.quantize.modules import StoredLayer
from compress.quantize.narrowing import HALVES
from compress.structure import batch_length, cast_floats, map_tensors

MATCH_DB = 60.0
"""Agreement with the model in memory that float files reach: kernels order sums differently."""
LOST_DB = 1.5
"""What an int8 file may lie farther from the original than the model in memory does."""


_FLOATS = ("fp32", "fp16", "bf16")


@dataclass(frozen=True)
class Written:
    """A finished file, and the outputs' agreement with the model in memory in dB."""

    path: Path
    match_db: float


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A compressed model in memory, and what its files are held to.

    Attributes:
        graph_module: The finished model; its placeholders bear the argument names.
        original: The original file.
        probes: Inputs in float32, of at least two batch sizes where the model takes two; the last
            is the example, with the largest batch.
        precision: For the files' names.
        dtype: Element type of the original's floating-point arguments and outputs.
        dynamic_dims: Name of an input to the axes that lifting proved to vary.
        islands: Name to the reason why a module stays TorchScript.
        guards: Facts about the inputs that the graph takes for granted, as sentences.
        freeze: For TorchScript; see `export_torchscript`.
        device: Where the model lies, and its files run.
    """

    graph_module: fx.GraphModule
    original: Path
    probes: Sequence[Sequence[Any]]
    precision: str = "fp32"
    dtype: torch.dtype = torch.float32
    dynamic_dims: Mapping[str, Sequence[int]] = field(default_factory=dict)
    islands: Mapping[str, str] = field(default_factory=dict)
    guards: Sequence[str] = ()
    freeze: bool = False
    device: torch.device = CPU

    @property
    def stores_half(self) -> bool:
        """Whether some of the weights are in 16 bits."""
        return self.precision in HALVES or any(
            isinstance(module, StoredLayer) and module.stored_as in HALVES
            for module in self.graph_module.modules()
        )

    def target(self, folder: Path, suffix: str) -> Path:
        """Return where a file goes: `model.int8.onnx`."""
        return folder / f"model.{self.precision}.{suffix}"

    def cast_probes(self) -> list[list[Any]]:
        """Return copies of the probes, as the original takes them."""
        return [map_tensors(cast_floats(probe, self.dtype), torch.clone) for probe in self.probes]


def check_portable(plan: Plan, format_name: str) -> None:
    """Refuse what only TorchScript holds.

    Raises:
        ExportFailed: Says what it is.
    """
    model = plan.graph_module
    for name in island_names(model):
        reason = plan.islands.get(name) or "It keeps state, or its way hangs on the data."
        raise ExportFailed(
            f"'{name}' stays TorchScript, which {format_name} cannot hold. {reason} Ask for "
            "format 'torchscript'."
        )
    for node in model.graph.nodes:
        if node.op == "call_module" and is_loop(model.get_submodule(str(node.target))):
            raise ExportFailed(
                f"The model runs a loop as often as its input says, which {format_name} files of "
                "Tersor do not hold. Ask for format 'torchscript'."
            )


def verify(plan: Plan, run: Callable[..., Any], expected: Sequence[Any], where: str) -> float:
    """Compare a loaded file with the model in memory on all probes.

    Args:
        plan: What was exported.
        run: The file, loaded afresh.
        expected: Outputs of the model in memory, one for each probe.
        where: Who runs it, for the error.

    Returns:
        The agreement in dB, over all probes.

    Raises:
        ExportFailed: It fails on a probe, returns another structure, or other values.
    """
    match, answers = NoiseMeter(), []
    for probe, reference in zip(plan.cast_probes(), expected, strict=True):
        size = batch_length(probe)
        try:
            answer = run(*probe)
        except (RuntimeError, ValueError, AssertionError) as error:
            raise ExportFailed(
                f"The file, loaded afresh in {where}, fails at batch size {size}: "
                f"{first_line(error)}"
            ) from error
        if not same_structure(reference, answer):
            raise ExportFailed(
                f"The file, loaded afresh in {where}, returns another structure or shape at batch "
                f"size {size}."
            )
        _add(match, reference, answer)
        answers.append(answer)
    found = match.sqnr_db
    if found >= MATCH_DB or (plan.precision not in _FLOATS and _as_close(plan, expected, answers)):
        return found
    raise ExportFailed(
        f"The file, loaded afresh in {where}, differs from the model in memory ({found:.0f} dB)."
    )


def _as_close(plan: Plan, expected: Sequence[Any], answers: Sequence[Any]) -> bool:
    """Whether a file is about as close to the original as the model in memory is.

    Integers are the same in every runtime, but a tie or a last bit may round to the other side.
    """
    original: Any = torch.jit.load(str(plan.original), map_location="cpu").eval()  # type: ignore[no-untyped-call]
    mine, theirs = NoiseMeter(), NoiseMeter()
    with torch.no_grad():
        for probe, kept, answer in zip(plan.cast_probes(), expected, answers, strict=True):
            wanted = original(*probe)
            _add(mine, wanted, kept)
            _add(theirs, wanted, answer)
    return theirs.sqnr_db >= mine.sqnr_db - LOST_DB


def _add(meter: NoiseMeter, left: Any, right: Any) -> None:
    for a, b in zip(output_tensors(left), output_tensors(right), strict=True):
        meter.add(a, b)


def answers_of(model: fx.GraphModule, plan: Plan) -> list[Any]:
    """Run the model in memory on all probes.

    Raises:
        ExportFailed: It holds for other sizes only.
    """
    answers = []
    for probe in plan.cast_probes():
        try:
            with torch.no_grad():
                answers.append(model(*probe))
        except RuntimeError as error:
            raise ExportFailed(
                f"The compressed model fails at batch size {batch_length(probe)}: "
                f"{first_line(error)}"
            ) from error
    return answers


def in_memory(plan: Plan) -> fx.GraphModule:
    """Return the model in memory, with arguments and outputs as the original's."""
    graph = fx.Graph()
    graph.output(graph.graph_copy(plan.graph_module.graph, {}))
    model = fx.GraphModule(plan.graph_module, graph)
    match_dtypes(model, plan.dtype, plan.probes[-1])
    return model
