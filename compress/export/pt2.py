"""`.pt2` out: an exported program, which plain `torch.export.load` reads.

Weights lie in the file as int8 and are widened on each call; activations are rounded to their
scales. All of it is plain ATen: packed int8 kernels cannot be exported, and the decomposed
operators of torch's own quantizer need an import to load.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.errors import ExportFailed
from compress.export.dtypes import match_dtypes
from compress.export.plan import Plan, Written, answers_of, check_portable, in_memory, verify
from compress.export.qdq import TORCH
from compress.export.reference import to_reference
from compress.export.runners import NOTES, SIGNATURE_KEY, first_line, open_artifact
from compress.export.signature import argument_names, read_signature
from compress.export.tracing import properties, quiet_exporter, trace


def export_pt2(plan: Plan, target: Path) -> Written:
    """Write a plan as an exported program, load it afresh and compare before it counts.

    Raises:
        ExportFailed: It cannot be traced, or the file answers differently.
    """
    check_portable(plan, "pt2")
    reference = to_reference(plan.graph_module, plan.probes[-1], TORCH)
    match_dtypes(reference, plan.dtype, plan.probes[-1])
    expected = answers_of(in_memory(plan), plan)
    example = plan.cast_probes()[-1]
    signature = read_signature(argument_names(reference), example, expected[-1])
    _forget_names_of_tuples(reference)
    exported = trace(plan, reference, signature, "pt2")
    _forget_origins(exported)
    notes = properties(plan) | {SIGNATURE_KEY: signature.to_json()}
    part = target.with_name(f"{target.stem}.part.pt2")
    try:
        _save(exported, part, json.dumps(notes))
        match_db = verify(plan, open_artifact(part, "pt2", 1), expected, "torch.export")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return Written(target, match_db)


def _save(exported: torch.export.ExportedProgram, path: Path, notes: str) -> None:
    with quiet_exporter():
        try:
            torch.export.save(exported, path, extra_files={NOTES: notes})
        except (NotImplementedError, RuntimeError, ValueError) as error:
            raise ExportFailed(
                f"The traced program cannot be saved: {first_line(error)} Ask for format "
                "'torchscript'."
            ) from error


def _forget_names_of_tuples(reference: fx.GraphModule) -> None:
    """Return plain tuples: to load a named one, its class must be there."""

    def plain(value: Any) -> Any:
        if isinstance(value, list | tuple):
            items = [plain(item) for item in value]
            return items if isinstance(value, list) else tuple(items)
        if isinstance(value, dict):
            return {key: plain(item) for key, item in value.items()}
        return value

    output = reference.graph.output_node()
    output.args = (plain(output.args[0]),)
    reference.recompile()


def _forget_origins(exported: torch.export.ExportedProgram) -> None:
    """Drop what only tells where nodes came from, and the example: often half of a small file."""
    for node in exported.graph.nodes:
        for note in ("stack_trace", "nn_module_stack", "source_fn_stack", "torch_fn"):
            node.meta.pop(note, None)
    exported._example_inputs = None
