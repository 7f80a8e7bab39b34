"""OpenVINO IR out: an optional extra, made from an ONNX graph written for it.

IR is two files, `model.xml` and `model.bin`; what is written is one zip of both, stored
uncompressed, to be unpacked before `openvino.Core().read_model("model.xml")`.
"""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from compress.errors import ExportFailed
from compress.export.onnx import write_onnx
from compress.export.plan import Plan, Written, verify
from compress.export.qdq import OPENVINO
from compress.export.runners import (
    NO_OPENVINO,
    SIGNATURE_KEY,
    WEIGHTS,
    XML,
    first_line,
    open_artifact,
)
from compress.export.signature import Signature
from compress.export.tracing import properties

_EPOCH = (1980, 1, 1, 0, 0, 0)


def export_openvino(plan: Plan, target: Path) -> Written:
    """Write a plan as OpenVINO IR in one zip, run it in OpenVINO and compare before it counts.

    Raises:
        ExportFailed: The extra is not installed, OpenVINO cannot hold the model, or the file
            answers differently.
    """
    try:
        import openvino
    except ImportError as error:
        raise ExportFailed(NO_OPENVINO) from error
    part = target.with_name(target.name + ".part")
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".openvino-") as folder:
        onnx = Path(folder) / "model.onnx"
        signature, expected = write_onnx(plan, onnx, OPENVINO, "OpenVINO")
        try:
            # not convert_model, which reports its use to the makers
            model = openvino.Core().read_model(onnx)
            _describe(model, plan, signature)
            openvino.save_model(model, Path(folder) / XML, compress_to_fp16=False)
        except RuntimeError as error:
            raise ExportFailed(
                f"OpenVINO does not take the model: {first_line(error)} Ask for format "
                "'torchscript'."
            ) from error
        try:
            _zip(Path(folder), part)
            run = open_artifact(part, "openvino", torch.get_num_threads())
            match_db = verify(plan, run, expected, "OpenVINO")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
    return Written(target, match_db)


def _describe(model: Any, plan: Plan, signature: Signature) -> None:
    """Name the ports, and note what the file says of itself."""
    for port, leaf in zip(model.inputs, signature.inputs, strict=True):
        port.get_tensor().set_names({leaf.name})
    for port, name in zip(model.outputs, signature.outputs, strict=True):
        port.get_tensor().add_names({name})
    for key, value in (properties(plan) | {SIGNATURE_KEY: signature.to_json()}).items():
        model.set_rt_info(value, key.split("."))


def _zip(folder: Path, target: Path) -> None:
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for name in (XML, WEIGHTS):
            with (
                (folder / name).open("rb") as file,
                archive.open(zipfile.ZipInfo(name, _EPOCH), "w", force_zip64=True) as entry,
            ):
                while chunk := file.read(1 << 20):
                    entry.write(chunk)
