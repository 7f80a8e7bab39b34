"""One net of the zoo at 224 x 224 to int8, by the engine alone in a fresh process.

Prints for each form and file sizes, paired latencies with the 95 % interval of their ratio, and
fidelity; then what each stage of the job took.

    python benchmarks/ptq.py [resnet18] [--images 128] [--threads 2] [--form traced --form scripted]
                             [--format torchscript --format onnx]
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
from typing import Any, get_args

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from compress.spec import Format
from tests.compress.zoo.registry import ENTRIES

STAGES = ("load", "lift", "calibrate", "convert", "export", "evaluate", "benchmark")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("net", nargs="?", default="resnet18")
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--form", action="append", choices=("traced", "scripted"))
    parser.add_argument("--format", action="append", choices=get_args(Format))
    arguments = parser.parse_args()
    net = ENTRIES[arguments.net].model(full=True)
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        torch.jit.trace(net, torch.rand(1, 3, 224, 224)).save(str(folder / "traced.pt"))
        torch.jit.script(net).save(str(folder / "scripted.pt"))
        images = np.random.default_rng(0).random((arguments.images, 3, 224, 224), np.float32)
        np.savez(folder / "images.npz", input=images)
        del images, net
        print(f"{'':22}{'MB':>14}{'smaller':>9}{'p50 ms':>16}{'speedup':>9}{'95 %':>14}"
              f"{'SQNR dB':>9}")  # fmt: skip
        for form in arguments.form or ("traced", "scripted"):
            result, seconds = _compress(
                folder, form, arguments.images, arguments.threads, arguments.format or ()
            )
            _print(form, result)
            told = ", ".join(f"{stage} {took:.1f}" for stage, took in seconds.items())
            print(f"{'':22}{sum(seconds.values()):.1f} s: {told}")


def _compress(
    folder: Path, form: str, images: int, threads: int, formats: tuple[str, ...]
) -> tuple[dict[str, Any], dict[str, float]]:
    """Run a job; return its result and the seconds of each stage, of starting up too."""
    began = time.perf_counter()
    child = subprocess.Popen(
        [
            sys.executable, "-m", "compress", "ptq", str(folder / f"{form}.pt"),
            str(folder / "images.npz"), "-o", str(folder / form), "--json",
            "--samples", str(images), "--threads", str(threads),
            *(word for one in formats for word in ("--format", one)),
        ],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    assert child.stdout is not None
    assert child.stderr is not None
    seconds, stage, at = {}, "start", began
    for line in child.stderr:  # one for each stage; the result comes when all are over
        words = line.split()
        if words and words[0] in STAGES:
            now = time.perf_counter()
            seconds[stage], stage, at = now - at, words[0], now
        else:
            sys.stderr.write(line)
    answer = child.stdout.read()
    if child.wait() != 0:
        raise SystemExit(f"{form} failed")
    seconds[stage] = time.perf_counter() - at
    return json.loads(answer), seconds


def _print(form: str, result: dict[str, Any]) -> None:
    before = result["baseline"]
    for after in result["artifacts"]:
        low, high = after["speedup"]["ci95"]
        print(
            f"{form:9}{after['format']:13}"
            f"{before['size_bytes'] / 1e6:7.1f}{after['size_bytes'] / 1e6:7.1f}"
            f"{after['compression_ratio']:8.2f}x"
            f"{before['latency_ms']['p50']:8.1f}{after['latency_ms']['p50']:8.1f}"
            f"{after['speedup']['value']:8.2f}x{low:7.2f}{high:7.2f}"
            f"{after['fidelity']['sqnr_db']:9.1f}"
        )


if __name__ == "__main__":
    main()
