"""Memory of training on 4 GB of samples, beside that of training on few.

A process of its own, which `train.py` starts for each, trains on a file and prints its peak:

    python benchmarks/train_memory.py DATA FOLDER
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.train_jobs import BATCH, Bench, Watch
from compress.pipeline import run
from compress.result import Inputs
from compress.spec import DistillConfig, EngineSpec

SAMPLES = 1_350_000  # 4.2 GB as float32


def show_memory(bench: Bench) -> None:
    """Peak memory of training on 4 GB, less that of the same training on little."""
    peaks = {}
    for name, samples in (("little", 10_000), ("4 GB", SAMPLES)):
        data = bench.folder / "large.npz"
        _write_large(data, samples)
        done = subprocess.run(
            [sys.executable, __file__, str(data), str(bench.folder)],
            stdout=subprocess.PIPE, text=True, check=True,
        )  # fmt: skip
        peaks[name] = int(done.stdout.split()[-1])
        size = data.stat().st_size
        print(f"Memory: {size / 1e9:.2f} GB of data, peak {peaks[name] / 1e9:.2f} GB", flush=True)
        data.unlink()
    print(f"  {(peaks['4 GB'] - peaks['little']) / 1e9:.2f} GB more", flush=True)


def _write_large(path: Path, samples: int) -> None:
    rows = np.random.default_rng(0).random((10_000, 1, 28, 28), np.float32)
    pictures = np.lib.format.open_memmap(
        path.with_suffix(".npy"), mode="w+", dtype=np.float32, shape=(samples, 1, 28, 28)
    )
    for start in range(0, samples, len(rows)):
        pictures[start : start + len(rows)] = rows[: samples - start]
    pictures.flush()
    np.savez(path, input=pictures, label=np.arange(samples) % 10)
    path.with_suffix(".npy").unlink()


def train_on(data: Path, folder: Path) -> None:
    """In a process of its own: train on a file, and print the peak of the resident memory."""
    config = DistillConfig(
        student_model_id="student", steps=1000, batch_size=BATCH, temperature=4.0
    )
    inputs = Inputs(
        model=folder / "teacher.pt", student=folder / "student0.pt", training=data,
        evaluation=folder / "test.npz",
    )  # fmt: skip
    out = Path(tempfile.mkdtemp(dir=folder))
    run(EngineSpec(method="distill", config=config, threads=1), inputs, Watch(), out)
    status = Path("/proc/self/status").read_text()
    peak = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    print(int(peak.split()[1]) * 1024)


if __name__ == "__main__":
    train_on(Path(sys.argv[1]), Path(sys.argv[2]))
