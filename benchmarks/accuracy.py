"""What static int8 costs trained nets on real data, setting by setting.

Trains a residual net and a depthwise one on handwritten digits and on pictures of clothes, and
prints the top-1 accuracy on all test images of the float net and of each int8 one.

Where the data is from: `images.py`.

    python benchmarks/accuracy.py --digits FOLDER --clothes FOLDER [--epochs 3] [--quick]
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import fx

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.images import Depthwise, Residual, read_images, top1, trained
from compress.quantize import quantize_static
from compress.spec import PtqConfig

CALIBRATION_SAMPLES = 256
PLAIN: list[dict[str, Any]] = [
    {"observer": observer} for observer in ("histogram", "minmax", "percentile", "mse", "entropy")
]
WEAPONS: list[dict[str, Any]] = [
    {"granularity": granularity, **weapon}
    for granularity in ("per_channel", "per_tensor")
    for weapon in (
        {}, {"equalize": True}, {"bias_correction": True},
        {"equalize": True, "bias_correction": True}, {"adaround": True},
    )
]  # fmt: skip


def describe(config: dict[str, Any]) -> str:
    words = [config.get("granularity", "per_channel"), config.get("observer", "histogram")]
    return " ".join([*words, *(key for key, value in config.items() if value is True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--digits", type=Path, help="folder with MNIST's idx files")
    parser.add_argument("--clothes", type=Path, help="folder with Fashion-MNIST's idx files")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="no adaround")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for data in ("digits", "clothes"):
        folder = getattr(arguments, data)
        if folder is None:
            continue
        images = read_images(folder)
        for kind in (Residual, Depthwise):
            model = trained(kind, data, images, arguments.epochs, width=16)
            before = top1(model, images)
            print(f"{kind.__name__} net, {data}: float {before:.2f} %")
            print(f"  {'':52}{'top1 %':>8}{'drop':>8}{'s':>7}")
            for config in PLAIN + WEAPONS[1:]:  # the first of both is the same
                if config.get("adaround") and arguments.quick:
                    continue
                began = time.perf_counter()
                result = quantize_static(
                    fx.symbolic_trace(model),
                    [images.train[:2]],
                    ([part] for part in images.train[:CALIBRATION_SAMPLES].split(32)),
                    PtqConfig(**config),
                    backend="x86",
                )
                took_s = time.perf_counter() - began
                after = top1(result.graph_module, images)
                name = describe(config)
                print(f"  {name:52}{after:8.2f}{before - after:8.2f}{took_s:7.1f}", flush=True)


if __name__ == "__main__":
    main()
