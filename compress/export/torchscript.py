"""TorchScript out: a file that drops in where the original was, and needs no Tersor code.

It loads with plain `torch.jit.load`, takes arguments of the same names, returns the same structure,
and keeps every size dynamic that was so.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.devices import CPU, bring
from compress.errors import ExportFailed
from compress.export.archive import extra_file_names, repack
from compress.export.builtins import forget_builtins_
from compress.export.dtypes import match_dtypes
from compress.export.flatten import flatten
from compress.export.plan import Written
from compress.export.runners import first_line
from compress.measure.fidelity import NoiseMeter
from compress.measure.outputs import output_tensors, same_structure
from compress.quantize.islands import keeps_state, renew_islands
from compress.structure import batch_length, cast_floats

_MIN_MATCH_DB = 100.0
"""Loaded and in-memory run the same kernels; 100 dB leaves room for another order of sums."""
_MIN_MATCH_GPU_DB = 35.0
"""Of files for GPUs, which compute in 16 bits: a rounding is worth 48 dB in bfloat16, 66 dB in
float16, and weights that lie otherwise in a file than in memory may have another kernel."""


def export_torchscript(
    graph_module: fx.GraphModule,
    original: Path,
    target: Path,
    probes: Sequence[Sequence[Any]],
    *,
    dtype: torch.dtype = torch.float32,
    freeze: bool,
    device: torch.device = CPU,
) -> Written:
    """Write `graph_module` to `target`, load it afresh and compare before it counts.

    Args:
        graph_module: The finished model, on the device; its placeholders bear the argument names.
        original: The original file, whose extra files are kept.
        target: Where the file goes.
        probes: Inputs in float32 of at least two batch sizes, on the processor.
        dtype: Element type of the original's floating-point arguments and outputs.
        freeze: Turn weights into constants, unless there is state. Right for int8, which never
            moves or trains; a float file stays movable.
        device: Where the file is run to compare it.

    Raises:
        ExportFailed: It cannot be written as TorchScript, or differs when loaded.
    """
    model = flatten(graph_module)
    model.eval()
    renew_islands(model, graph_module)  # none that is run here goes into the file
    there = [bring(list(probe), device) for probe in probes]
    cast = [cast_floats(probe, dtype) for probe in there]
    match_dtypes(model, dtype, there[0])
    expected = []
    for probe in cast:
        renew_islands(model, graph_module)
        expected.append(_answer(model, probe))
    renew_islands(model, graph_module)
    # freezing would give each island a state of its own
    scripted = _compile(model, freeze=freeze and not keeps_state(model))
    whole = target.with_name(target.name + ".part")
    slim = target.with_name(target.name + ".slim")
    try:
        torch.jit.save(scripted, str(whole), _extra_files=_extra_files(original))
        repack(whole, slim)
        match_db = _verify(slim, cast, expected, device)
        slim.replace(target)
    finally:
        whole.unlink(missing_ok=True)
        slim.unlink(missing_ok=True)
    return Written(target, match_db)


def _answer(model: fx.GraphModule, probe: Sequence[Any]) -> Any:
    try:
        with torch.no_grad():
            return model(*probe)
    except RuntimeError as error:  # a guard: the graph holds for other sizes only
        raise ExportFailed(
            f"The compressed model fails at batch size {batch_length(probe)}: {first_line(error)}"
        ) from error


def _compile(model: fx.GraphModule, *, freeze: bool) -> torch.jit.ScriptModule:
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        try:
            forget_builtins_()
            scripted = torch.jit.script(model)
        except (RuntimeError, TypeError, NotImplementedError, OSError) as error:
            raise ExportFailed(
                f"The compressed model could not be written as TorchScript: {first_line(error)}"
            ) from error
        scripted.eval()
        return torch.jit.freeze(scripted) if freeze else scripted


def _verify(
    path: Path, probes: Sequence[Sequence[Any]], expected: Sequence[Any], device: torch.device
) -> float:
    """Compare answers; each is of a model loaded afresh, since it may keep state."""
    worst_db = float("inf")
    for probe, reference in zip(probes, expected, strict=True):
        try:
            loaded = torch.jit.load(str(path), map_location=device)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            raise ExportFailed(f"The file does not load again: {first_line(error)}") from error
        size = batch_length(probe)
        try:
            with torch.no_grad():
                output = loaded(*probe)
        except RuntimeError as error:
            raise ExportFailed(
                f"The file, loaded afresh, fails at batch size {size}: {first_line(error)}"
            ) from error
        if not same_structure(reference, output):
            raise ExportFailed(
                f"The file, loaded afresh, returns another structure or shape at batch size {size}."
            )
        meter = NoiseMeter()
        for left, right in zip(output_tensors(reference), output_tensors(output), strict=True):
            meter.add(left, right)
        worst_db = min(worst_db, meter.sqnr_db)
    if worst_db < (_MIN_MATCH_DB if device.type == "cpu" else _MIN_MATCH_GPU_DB):
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
