"""File formats: one file per format, each verified by loading afresh what it wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from compress.errors import CompressError, ExportFailed
from compress.export.onnx import export_onnx
from compress.export.openvino import export_openvino
from compress.export.plan import Plan, Written
from compress.export.pt2 import export_pt2
from compress.export.runners import Runner, first_line, open_artifact
from compress.export.torchscript import export_torchscript
from compress.out_of_memory import lacks_memory
from compress.spec import Format

__all__ = ["SUFFIXES", "Plan", "Runner", "Written", "export", "open_artifact"]

SUFFIXES: dict[Format, str] = {
    "torchscript": "torchscript.pt",
    "onnx": "onnx",
    "openvino": "openvino.zip",
    "pt2": "pt2",
}
"""What the files' names end with."""


def export(format: Format, plan: Plan, folder: Path) -> Written:
    """Write a plan in one format, load the file afresh and compare before it counts.

    Args:
        format: Which.
        plan: The model in memory.
        folder: Existing; receives `model.<precision>.<suffix>`.

    Raises:
        ExportFailed: The format cannot hold the model, or the library that writes it fails; says
            why.
        MemoryError: Memory ran out, in whatever words.
    """
    try:
        return _EXPORTERS[format](plan, plan.target(folder, SUFFIXES[format]))
    except Exception as error:
        if lacks_memory(error):
            raise MemoryError from error
        if isinstance(error, CompressError):
            raise
        told = f"{type(error).__name__}: {first_line(error)}"
        raise ExportFailed(
            f"Writing format '{format}' failed within a library that Tersor uses, with {told} Ask "
            "for other formats."
        ) from error


def _torchscript(plan: Plan, target: Path) -> Written:
    return export_torchscript(
        plan.graph_module,
        plan.original,
        target,
        plan.probes,
        dtype=plan.dtype,
        freeze=plan.freeze,
        device=plan.device,
    )


_EXPORTERS: dict[Format, Callable[[Plan, Path], Written]] = {
    "torchscript": _torchscript,
    "onnx": export_onnx,
    "openvino": export_openvino,
    "pt2": export_pt2,
}
