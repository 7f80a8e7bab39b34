"""Finished files of every format as callables, for comparing and for timing.

Each takes `forward`'s arguments and returns what the original would, so that nobody who measures
need know formats. Beyond the runtime's own work a call costs some microseconds: tensors go in and
come out as views where the runtime allows.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compress.devices import CPU
from compress.errors import ExportFailed
from compress.export.signature import Signature
from compress.measure.outputs import output_tensors
from compress.spec import Format

Runner = Callable[..., Any]
"""Takes the arguments of forward, tensors on the file's device; returns what forward did."""

SIGNATURE_KEY = "tersor.signature"
"""Under which an ONNX file keeps its signature."""
NOTES = "tersor.json"
"""The file inside a `.pt2` that keeps it."""
XML, WEIGHTS = "model.xml", "model.bin"
"""Names inside a file of OpenVINO's."""
NO_OPENVINO = (
    "Format 'openvino' needs the package openvino; install Tersor with its extra: "
    "pip install 'tersor[server,openvino]'."
)


def open_artifact(path: Path, format: Format, threads: int, device: torch.device = CPU) -> Runner:
    """Load a file afresh.

    Args:
        path: A file that `compress.export` wrote, or the original as `torchscript`.
        format: What it is.
        threads: For one call. Torch's own formats run on the threads that torch is set to.
        device: Where it is to run; TorchScript alone runs on others than the processor.

    Raises:
        ExportFailed: The runtime does not load it, or is not installed.
    """
    if format == "torchscript":
        return _open_torchscript(path, device)
    return _OPENERS[format](path, threads)


def _open_torchscript(path: Path, device: torch.device) -> Runner:
    try:
        module: Any = torch.jit.load(str(path), map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise ExportFailed(f"The file does not load again: {first_line(error)}") from error
    return _without_gradients(module)


def _open_pt2(path: Path, threads: int) -> Runner:
    notes = {NOTES: ""}
    try:
        module = torch.export.load(path, extra_files=notes).module()
    except (RuntimeError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ExportFailed(f"The file does not load again: {first_line(error)}") from error
    signature = Signature.from_json(json.loads(notes[NOTES])[SIGNATURE_KEY])

    def run(*arguments: Any) -> Any:
        with torch.no_grad():
            return signature.rebuild(output_tensors(module(*arguments)))

    return run


def _without_gradients(module: Callable[..., Any]) -> Runner:
    def run(*arguments: Any) -> Any:
        with torch.no_grad():
            return module(*arguments)

    return run


def _open_onnx(path: Path, threads: int) -> Runner:
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    errors = tuple(
        each
        for each in vars(state).values()
        if isinstance(each, type) and issubclass(each, Exception)
    )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # a thread that waits for work by spinning slows down whatever else is timed in turn
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
    except errors as error:
        raise ExportFailed(f"ONNX Runtime does not load the file: {first_line(error)}") from error
    signature = Signature.from_json(session.get_modelmeta().custom_metadata_map[SIGNATURE_KEY])
    names = [leaf.name for leaf in signature.inputs]
    outputs = list(signature.outputs)

    def run(*arguments: Any) -> Any:
        given = dict(zip(names, map(_as_array, signature.pick(arguments)), strict=True))
        try:
            found = session.run(outputs, given)
        except errors as error:
            raise RuntimeError(first_line(error)) from error
        return signature.rebuild([torch.from_numpy(array) for array in found])

    return run


def _open_openvino(path: Path, threads: int) -> Runner:
    try:
        import openvino
    except ImportError as error:
        raise ExportFailed(NO_OPENVINO) from error
    try:
        with zipfile.ZipFile(path) as archive:
            xml, weights = archive.read(XML), archive.read(WEIGHTS)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ExportFailed(f"The file does not load again: {first_line(error)}") from error
    core = openvino.Core()
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",  # else bfloat16, on a processor that has it
        "ENABLE_CPU_PINNING": False,  # the process runs other engines, too
    }
    try:
        model = core.read_model(xml, weights)
        compiled = core.compile_model(model, "CPU", settings)
    except RuntimeError as error:
        raise ExportFailed(f"OpenVINO does not load the file: {first_line(error)}") from error
    signature = Signature.from_json(model.get_rt_info(SIGNATURE_KEY.split(".")).astype(str))
    request = compiled.create_infer_request()
    ports = [compiled.input(leaf.name) for leaf in signature.inputs]
    outputs = [compiled.output(name) for name in signature.outputs]

    def run(*arguments: Any) -> Any:
        given = dict(zip(ports, map(_as_array, signature.pick(arguments)), strict=True))
        found = request.infer(given, share_inputs=True, share_outputs=False)
        return signature.rebuild([torch.from_numpy(found[port]) for port in outputs])

    return run


_OPENERS: dict[Format, Callable[[Path, int], Runner]] = {
    "onnx": _open_onnx,
    "openvino": _open_openvino,
    "pt2": _open_pt2,
}


def _as_array(tensor: Tensor) -> Any:
    return tensor.detach().contiguous().numpy()


def first_line(error: BaseException) -> str:
    """The beginning of an error's words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
