"""ONNX out: quantization as QuantizeLinear and DequantizeLinear, as runtimes look for it.

Weights lie in the file as int8, with the very scales that the int8 TorchScript computes with.
torch's exporter over `torch.export` writes the file. Of the zoo it took all but what only control
flow can say, kept free sizes free, and names its operators by meaning; the older one over
TorchScript is deprecated, does not know quantized types, and fails on what `torch.export` opens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.errors import ExportFailed
from compress.export.dtypes import match_dtypes
from compress.export.onnx_graph import finish_graph
from compress.export.onnx_operators import translations
from compress.export.plan import Plan, Written, answers_of, check_portable, in_memory, verify
from compress.export.qdq import ONNX, Dialect
from compress.export.reference import to_reference
from compress.export.runners import first_line, open_artifact
from compress.export.signature import Signature, argument_names, read_signature
from compress.export.stored import INT4_SUFFIX
from compress.export.tracing import properties, quiet_exporter, root_of, trace

_OPSET = 18
_OPSET_OF_INT4 = 21
_LARGEST_BYTES = 2_000_000_000
"""Of a file that holds its weights: protocol buffers end at 2 GiB."""


def export_onnx(plan: Plan, target: Path) -> Written:
    """Write a plan as one ONNX file, run it in ONNX Runtime and compare before it counts.

    Raises:
        ExportFailed: ONNX cannot hold the model, or the file answers differently.
    """
    part = target.with_name(target.name + ".part")
    try:
        _, expected = write_onnx(plan, part, ONNX, "ONNX")
        run = open_artifact(part, "onnx", torch.get_num_threads())
        match_db = verify(plan, run, expected, "ONNX Runtime")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
    return Written(target, match_db)


def write_onnx(
    plan: Plan, path: Path, dialect: Dialect, format_name: str
) -> tuple[Signature, list[Any]]:
    """Write an ONNX file, without running it.

    Args:
        plan: What to write.
        path: Where to.
        dialect: How quantization is spelt.
        format_name: For errors.

    Returns:
        The file's signature, and the outputs of the model in memory for each probe.

    Raises:
        ExportFailed: ONNX cannot hold the model.
    """
    check_portable(plan, format_name)
    if plan.dtype == torch.bfloat16:
        raise ExportFailed(
            f"The model takes bfloat16, which {format_name} files cannot be given from Python. "
            "Ask for format 'torchscript'."
        )
    reference = to_reference(plan.graph_module, plan.probes[-1], dialect)
    match_dtypes(reference, plan.dtype, plan.probes[-1])
    expected = answers_of(in_memory(plan), plan)
    example = plan.cast_probes()[-1]
    signature = read_signature(argument_names(reference), example, expected[-1])
    program = write_program(plan, reference, signature)
    finish_graph(program.model, signature, properties(plan), halve=plan.stores_half)
    _save(program.model, path)
    return signature, expected


def write_program(plan: Plan, reference: fx.GraphModule, signature: Signature) -> Any:
    """Return torch's ONNX program of a reference graph.

    Raises:
        ExportFailed: It holds what ONNX has no word for.
    """
    exported = trace(plan, reference, signature, "ONNX")
    is_int4 = any(name.endswith(INT4_SUFFIX) for name, _ in reference.named_buffers())
    with torch.no_grad(), quiet_exporter():
        try:
            return torch.onnx.export(
                exported,
                dynamo=True,
                opset_version=_OPSET_OF_INT4 if is_int4 else _OPSET,
                custom_translation_table=translations(),
                verbose=False,
            )
        except MemoryError:
            raise
        except Exception as error:  # so does the exporter
            raise ExportFailed(
                f"The model could not be written as ONNX: {first_line(root_of(error))} Ask for "
                "format 'torchscript'."
            ) from error


def _save(model: Any, path: Path) -> None:
    import onnx_ir

    size = sum(value.const_value.nbytes for value in model.graph.initializers.values())
    if size > _LARGEST_BYTES:
        raise ExportFailed(
            f"The model's weights take {size / 1e9:.1f} GB; one ONNX file holds 2. Ask for a "
            "smaller precision, or format 'torchscript'."
        )
    onnx_ir.save(model, path)
