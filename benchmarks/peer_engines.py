"""What `peers.py` runs in processes of their own: one peer's quantization, or the race of files.

    python benchmarks/peer_engines.py onnxruntime|nncf FOLDER THREADS
    python benchmarks/peer_engines.py race FOLDER THREADS [--torchao]

FOLDER holds float.pt, float.onnx, calibration.npz, test.npz and, for the race, what others made.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

Call = Callable[[np.ndarray], np.ndarray]

_ROUNDS = 15
_ROUND_S = 0.05
_AFTER_SWITCH = 3
_TORCHAO = "torchao int8 (compiled)"


def quantize_with_onnxruntime(folder: Path) -> None:
    from onnxruntime.quantization import CalibrationDataReader, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    images = np.load(folder / "calibration.npz")["input"]

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._samples = iter(images)

        def get_next(self) -> dict[str, np.ndarray] | None:
            sample = next(self._samples, None)
            return None if sample is None else {"x": sample[None]}

    quant_pre_process(str(folder / "float.onnx"), str(folder / "prepared.onnx"))
    quantize_static(
        str(folder / "prepared.onnx"), str(folder / "onnxruntime.onnx"), Reader(), per_channel=True
    )


def quantize_with_nncf(folder: Path) -> None:
    import nncf
    import openvino

    images = np.load(folder / "calibration.npz")["input"]
    model = openvino.convert_model(str(folder / "float.onnx"))
    openvino.save_model(model, str(folder / "openvino_float.xml"), compress_to_fp16=False)
    quantized = nncf.quantize(
        model, nncf.Dataset([image[None] for image in images]), subset_size=len(images)
    )
    openvino.save_model(quantized, str(folder / "nncf.xml"))


def race(folder: Path, threads: int, *, with_torchao: bool) -> dict[str, dict[str, float]]:
    """Time all files in turn, and compare their answers with the float model's."""
    import torch

    torch.set_num_threads(threads)
    images = np.load(folder / "test.npz")["input"]
    calls = dict(_calls(folder, threads))
    made_s = {}
    if with_torchao:
        began = time.perf_counter()
        try:
            calls[_TORCHAO] = _torchao(folder)
            made_s[_TORCHAO] = time.perf_counter() - began
        except Exception as error:  # that a peer cannot take a net is a figure, too
            print(f"torchao failed: {error}", file=sys.stderr)
    reference = np.concatenate([calls["TorchScript float"](image[None]) for image in images])
    found: dict[str, dict[str, float]] = {}
    for name, call in calls.items():
        answers = np.concatenate([call(image[None]) for image in images])
        noise = float(((answers - reference).astype(np.float64) ** 2).sum())
        signal = float((reference.astype(np.float64) ** 2).sum())
        same = (answers.argmax(1) == reference.argmax(1)).mean()
        found[name] = {
            "sqnr_db": 200.0 if noise == 0 else 10 * float(np.log10(signal / noise)),
            "agreement": float(same),
        }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(_ROUNDS):
        for name, call in calls.items():
            for _ in range(_AFTER_SWITCH):
                call(images[:1])
            end = time.perf_counter() + _ROUND_S
            batch = []
            while not batch or time.perf_counter() < end:
                began = time.perf_counter()
                call(images[:1])
                batch.append(time.perf_counter() - began)
            times[name].append(statistics.median(batch) * 1e3)
    for name, medians in times.items():
        found[name]["p50_ms"] = statistics.median(medians)
    for name, seconds in made_s.items():
        found[name]["made_s"] = seconds
    return found


def _calls(folder: Path, threads: int) -> Iterator[tuple[str, Call]]:
    yield "TorchScript float", _torchscript(folder / "float.pt")
    made = folder / "tersor"
    for path in sorted(made.glob("model.*.torchscript.pt")):
        yield "Tersor TorchScript", _torchscript(path)
    for path in sorted(made.glob("model.*.onnx")):
        yield "Tersor ONNX", _onnx(path, threads)
    for path in sorted(made.glob("model.*.openvino.zip")):
        with zipfile.ZipFile(path) as archive:
            archive.extractall(folder / "unzipped")
        (xml,) = (folder / "unzipped").rglob("*.xml")
        yield "Tersor OpenVINO", _openvino(xml, threads)
    yield "onnxruntime float", _onnx(folder / "float.onnx", threads)
    yield "onnxruntime int8", _onnx(folder / "onnxruntime.onnx", threads)
    yield "OpenVINO float", _openvino(folder / "openvino_float.xml", threads)
    yield "OpenVINO int8 (NNCF)", _openvino(folder / "nncf.xml", threads)


def _torchscript(path: Path) -> Call:
    import torch

    model = torch.jit.load(str(path)).eval()

    def call(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return model(torch.from_numpy(x)).numpy()

    return call


def _onnx(path: Path, threads: int) -> Call:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda x: session.run(None, {name: x})[0]


def _openvino(path: Path, threads: int) -> Call:
    import openvino

    model = openvino.compile_model(
        str(path), "CPU", {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    )
    request = model.create_infer_request()
    return lambda x: request.infer([x])[0].copy()


def _torchao(folder: Path) -> Call:
    """Quantize the exported program and compile it; torchao has no file that runs by itself."""
    import torch
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    sys.path.insert(0, str(Path(__file__).parent.parent))  # the net's class is the zoo's
    images = torch.from_numpy(np.load(folder / "calibration.npz")["input"])
    program = torch.load(folder / "eager.pt", weights_only=False).eval()
    exported = torch.export.export(program, (images[:1],)).module()
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    prepared = prepare_pt2e(exported, quantizer)
    with torch.no_grad():
        for image in images[:64]:
            prepared(image[None])
        converted = convert_pt2e(prepared)
        compiled = torch.compile(converted)
        compiled(images[:1])

    def call(x: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            return compiled(torch.from_numpy(x)).numpy()

    return call


def main() -> None:
    warnings.filterwarnings("ignore")
    what, folder, threads = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    began = time.perf_counter()
    if what == "onnxruntime":
        quantize_with_onnxruntime(folder)
    elif what == "nncf":
        quantize_with_nncf(folder)
    else:
        found = race(folder, threads, with_torchao="--torchao" in sys.argv)
        (folder / "race.json").write_text(json.dumps(found))
        return
    (folder / f"{what}.seconds").write_text(str(time.perf_counter() - began))


if __name__ == "__main__":
    main()
