"""ResNet-18 at 224 x 224 to int8, traced and scripted, by the engine alone in a fresh process.

Prints sizes, paired latencies with the 95 % interval of their ratio, fidelity and seconds.

    python benchmarks/ptq.py [--images 128] [--threads 2]
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
from tests.compress.zoo import resnet18


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    net = resnet18()
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        torch.jit.trace(net, torch.rand(1, 3, 224, 224)).save(str(folder / "traced.pt"))
        torch.jit.script(net).save(str(folder / "scripted.pt"))
        images = np.random.default_rng(0).random((arguments.images, 3, 224, 224), np.float32)
        np.savez(folder / "images.npz", input=images)
        print(f"{'':10}{'MB':>14}{'smaller':>9}{'p50 ms':>16}{'speedup':>9}{'95 %':>14}"
              f"{'SQNR dB':>9}{'s':>7}")  # fmt: skip
        for form in ("traced", "scripted"):
            began = time.perf_counter()
            done = subprocess.run(
                [
                    sys.executable, "-m", "compress", "ptq", str(folder / f"{form}.pt"),
                    str(folder / "images.npz"), "-o", str(folder / form), "--json",
                    "--samples", str(arguments.images), "--threads", str(arguments.threads),
                ],
                stdout=subprocess.PIPE, check=True, cwd=Path(__file__).parent.parent,
            )  # fmt: skip
            took_s = time.perf_counter() - began
            result = json.loads(done.stdout)
            before, after = result["baseline"], result["artifacts"][0]
            low, high = after["speedup"]["ci95"]
            print(
                f"{form:10}"
                f"{before['size_bytes'] / 1e6:7.1f}{after['size_bytes'] / 1e6:7.1f}"
                f"{after['compression_ratio']:8.2f}x"
                f"{before['latency_ms']['p50']:8.1f}{after['latency_ms']['p50']:8.1f}"
                f"{after['speedup']['value']:8.2f}x{low:7.2f}{high:7.2f}"
                f"{after['fidelity']['sqnr_db']:9.1f}{took_s:7.1f}"
            )


if __name__ == "__main__":
    main()
