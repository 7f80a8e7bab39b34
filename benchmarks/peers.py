"""Tersor against onnxruntime, NNCF with OpenVINO, and torchao: same nets, data and threads.

Each tool quantizes in a process of its own; then all files run in turn in one process, in rounds,
so that the machine's moods hit all alike. Prints size, p50 latency at batch 1, closeness to the
float model (SQNR in dB, share of equal top classes), seconds to quantize, and ratios.

    pip install -e ".[server,openvino,dev,peers]"
    python benchmarks/peers.py [resnet18 resnet50 …] [--images 128] [--threads 2] [--torchao]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.compress.zoo.registry import ENTRIES

ROOT = Path(__file__).parent.parent

NETS = ("resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3", "efficientnet")
FILES = {
    "TorchScript float": "float.pt", "Tersor TorchScript": "tersor/model.*.torchscript.pt",
    "Tersor ONNX": "tersor/model.*.onnx", "Tersor OpenVINO": "tersor/model.*.openvino.zip",
    "onnxruntime float": "float.onnx", "onnxruntime int8": "onnxruntime.onnx",
    "OpenVINO float": "openvino_float.bin", "OpenVINO int8 (NNCF)": "nncf.bin",
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("nets", nargs="*", default=NETS, metavar="net", help=" ".join(NETS))
    parser.add_argument("--images", type=int, default=128, help="calibration images")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--torchao", action="store_true", help="too; it compiles for minutes")
    arguments = parser.parse_args()
    for net in arguments.nets:
        with tempfile.TemporaryDirectory(prefix="tersor-peers-") as name:
            folder = Path(name)
            _prepare(net, folder, arguments.images)
            seconds = _quantize(folder, arguments.images, arguments.threads)
            flags = ["--torchao"] if arguments.torchao else []
            _run("benchmarks/peer_engines.py", "race", folder, arguments.threads, *flags)
            found = json.loads((folder / "race.json").read_text())
            _print(net, found, seconds, folder, arguments.threads)


def _prepare(net: str, folder: Path, images: int) -> None:
    torch.manual_seed(0)
    entry = ENTRIES[net]
    model = entry.build(True).eval()
    example = torch.rand(1, 3, 224, 224)
    torch.jit.trace(model, example).save(str(folder / "float.pt"))
    torch.save(model, folder / "eager.pt")
    torch.onnx.export(  # for any batch, as Tersor's files are: OpenVINO is quicker with fixed sizes
        model, (example,), str(folder / "float.onnx"), input_names=["x"], dynamo=True,
        external_data=False, verbose=False, dynamic_shapes=({0: torch.export.Dim.DYNAMIC},),
    )  # fmt: skip
    draw = np.random.default_rng(0)
    for name, count in (("calibration", images), ("test", 32)):
        np.savez(folder / f"{name}.npz", input=draw.random((count, 3, 224, 224), np.float32))


def _quantize(folder: Path, images: int, threads: int) -> dict[str, float]:
    began = time.perf_counter()
    _run(
        "-m", "compress", "ptq", folder / "float.pt", folder / "calibration.npz", "-o",
        folder / "tersor", "--json", "--samples", images, "--threads", threads,
        "--format", "torchscript", "--format", "onnx", "--format", "openvino",
    )  # fmt: skip
    seconds = {"Tersor": time.perf_counter() - began}
    for peer, name in (("onnxruntime", "onnxruntime int8"), ("nncf", "OpenVINO int8 (NNCF)")):
        _run("benchmarks/peer_engines.py", peer, folder, threads)
        seconds[name] = float((folder / f"{peer}.seconds").read_text())
    return seconds


def _run(*words: object) -> None:
    threads = {"OMP_NUM_THREADS": str(words[-1])} if str(words[-1]).isdigit() else {}
    done = subprocess.run(
        [sys.executable, *map(str, words)], cwd=ROOT, env=os.environ | threads,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        raise SystemExit(f"{' '.join(map(str, words))} failed:\n{done.stderr[-3000:]}")


def _print(
    net: str,
    found: dict[str, dict[str, float]],
    seconds: dict[str, float],
    folder: Path,
    threads: int,
) -> None:
    baseline = found["TorchScript float"]["p50_ms"]
    best = min(
        one["p50_ms"]
        for name, one in found.items()
        if name in ("onnxruntime int8", "OpenVINO int8 (NNCF)")
    )
    print(f"\n{net}, 224 px, batch 1, {threads} threads")
    print(f"{'':26}{'MB':>7}{'p50 ms':>9}{'vs float':>10}{'vs peers':>10}{'SQNR dB':>9}"
          f"{'top-1 =':>9}{'made in s':>11}")  # fmt: skip
    for name, one in found.items():
        paths = sorted(folder.glob(FILES.get(name, "-")))
        size = f"{paths[0].stat().st_size / 1e6:7.1f}" if paths else f"{'':7}"
        took = seconds.get(name, one.get("made_s"))
        print(
            f"{name:26}{size}{one['p50_ms']:9.2f}{baseline / one['p50_ms']:9.2f}x"
            f"{best / one['p50_ms']:9.2f}x{one['sqnr_db']:9.1f}{one['agreement']:9.3f}"
            + (f"{took:11.1f}" if took is not None else "")
        )
    print(
        f"Tersor made its three files, measured, in {seconds['Tersor']:.1f} s. vs peers: the "
        "faster of the two int8 peers is 1."
    )
    ours = min(one["p50_ms"] for name, one in found.items() if name.startswith("Tersor"))
    print(f"fastest of Tersor's files against the fastest int8 peer: {best / ours:.2f}x")


if __name__ == "__main__":
    main()
