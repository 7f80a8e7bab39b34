"""TorchScript out: a file that drops in where the original was, and needs no Tersor code.

It loads with plain `torch.jit.load`, takes arguments of the same names, returns the same structure,
and keeps every size dynamic that was so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx

from compress.errors import ExportFailed
from compress.export.archive import extra_file_names, repack
from compress.export.flatten import flatten
from compress.measure.fidelity import NoiseMeter
from compress.measure.outputs import output_tensors, same_structure

_MIN_MATCH_DB = 100.0
"""Loaded and in-memory run the same kernels; 100 dB leaves room for another order of sums."""


@dataclass(frozen=True)
class Written:
    """A finished file, and the outputs' agreement with the model in memory in dB."""

    path: Path
    match_db: float


def export_torchscript(
    graph_module: fx.GraphModule,
    original: Path,
    target: Path,
    probes: Sequence[Sequence[Tensor]],
    *,
    dtype: torch.dtype = torch.float32,
    freeze: bool,
) -> Written:
    """Write `graph_module` to `target`, load it afresh and compare before it counts.

    Args:
        graph_module: The finished model, in float32 or int8; its placeholders bear the argument
            names.
        original: The original file, whose extra files are kept.
        target: Where the file goes.
        probes: Inputs in float32 of at least two batch sizes.
        dtype: Element type of the original's floating-point arguments and outputs.
        freeze: Turn weights into constants. Right for int8, which never moves or trains; a float
            file stays movable.

    Raises:
        ExportFailed: It cannot be written as TorchScript, or differs when loaded.
    """
    model = flatten(graph_module)
    _match_dtypes(model, dtype, probes[0])
    model.eval()
    cast = [_cast_inputs(probe, dtype) for probe in probes]
    with torch.no_grad():
        expected = [model(*probe) for probe in cast]
        scripted = _compile(model, cast[0], freeze=freeze)
    whole = target.with_name(target.name + ".part")
    slim = target.with_name(target.name + ".slim")
    try:
        torch.jit.save(scripted, str(whole), _extra_files=_extra_files(original))
        repack(whole, slim)
        match_db = _verify(slim, cast, expected)
        slim.replace(target)
    finally:
        whole.unlink(missing_ok=True)
        slim.unlink(missing_ok=True)
    return Written(target, match_db)


def _compile(
    model: fx.GraphModule, inputs: Sequence[Tensor], *, freeze: bool
) -> torch.jit.ScriptModule:
    """Compile by scripting, which keeps sizes and structures; by tracing where that fails."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            scripted = torch.jit.script(model)
        except (RuntimeError, TypeError, NotImplementedError, OSError) as unscriptable:
            try:
                scripted = torch.jit.trace(  # type: ignore[no-untyped-call]
                    model, tuple(inputs), check_trace=False, strict=False
                )
            except (RuntimeError, TypeError, ValueError) as untraceable:
                raise ExportFailed(
                    "The compressed model could not be written as TorchScript: "
                    f"{_first_line(unscriptable)}"
                ) from untraceable
        scripted.eval()
        return torch.jit.freeze(scripted) if freeze else scripted


def _verify(path: Path, probes: Sequence[Sequence[Tensor]], expected: Sequence[Any]) -> float:
    try:
        loaded = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ExportFailed(f"The file does not load again: {_first_line(error)}") from error
    worst_db = float("inf")
    with torch.no_grad():
        for probe, reference in zip(probes, expected, strict=True):
            try:
                output = loaded(*probe)
            except RuntimeError as error:
                raise ExportFailed(
                    f"The file, loaded afresh, fails at batch size {probe[0].shape[0]}: "
                    f"{_first_line(error)}"
                ) from error
            if not same_structure(reference, output):
                raise ExportFailed(
                    f"The file, loaded afresh, returns another structure or shape at batch size "
                    f"{probe[0].shape[0]}."
                )
            meter = NoiseMeter()
            for left, right in zip(output_tensors(reference), output_tensors(output), strict=True):
                meter.add(left, right)
            worst_db = min(worst_db, meter.sqnr_db)
    if worst_db < _MIN_MATCH_DB:
        raise ExportFailed(
            f"The file, loaded afresh, differs from the model in memory ({worst_db:.0f} dB)."
        )
    return worst_db


def _extra_files(original: Path) -> dict[str, bytes]:
    files: dict[str, Any] = dict.fromkeys(extra_file_names(original), "")
    if files:
        torch.jit.load(  # type: ignore[no-untyped-call]
            str(original), map_location="cpu", _extra_files=files
        )
    return {
        name: content.encode() if isinstance(content, str) else content
        for name, content in files.items()
    }


def _cast_inputs(inputs: Sequence[Tensor], dtype: torch.dtype) -> list[Tensor]:
    return [value.to(dtype) if value.is_floating_point() else value for value in inputs]


def _match_dtypes(model: fx.GraphModule, dtype: torch.dtype, probe: Sequence[Tensor]) -> None:
    """Cast inside, so that a half or double model's arguments and outputs stay what they were."""
    if dtype == torch.float32:
        return
    floats = _float_nodes(model, probe)
    nodes = list(model.graph.nodes)
    for node in nodes:
        if node.op == "placeholder" and node in floats:
            users = list(node.users)
            with model.graph.inserting_after(node):
                wide = model.graph.call_method("float", (node,))
            floats.add(wide)  # the output may be an input as it came
            for user in users:
                user.replace_input_with(node, wide)
    output = nodes[-1]
    with model.graph.inserting_before(output):
        output.args = fx.map_arg(
            output.args,
            lambda n: model.graph.call_method("to", (n, dtype)) if n in floats else n,
        )
    model.recompile()


def _float_nodes(model: fx.GraphModule, probe: Sequence[Tensor]) -> set[fx.Node]:
    found: set[fx.Node] = set()

    class Recorder(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor) and value.is_floating_point():
                found.add(n)
            return value

    with torch.no_grad():
        Recorder(model).run(*probe)
    return found


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
