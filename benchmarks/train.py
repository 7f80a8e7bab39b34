"""What training wins on pictures of clothes: distillation, pruning, quantization-aware training.

Each table runs the engine on files, as a job does, and takes its figures from the result: accuracy
on all 10,000 test images, of the finished file. Where the data is from: `images.py`.

    python benchmarks/train.py --clothes FOLDER [--only distill,speed,qat,prune,memory] [--epochs N]
        [--width N]
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
from benchmarks.images import Depthwise, Images, Residual, read_images, trained
from benchmarks.train_jobs import (
    BATCH,
    STUDENTS,
    Bench,
    before,
    parameters,
    points,
    spread,
    student_of,
    teacher_of,
)
from benchmarks.train_memory import show_memory
from compress.spec import DistillConfig, PtqConfig, QatConfig

WIDTHS = {"distill": 24, "speed": 48, "qat": 24, "prune": 48, "memory": 24}
"""Of the teachers. What is timed is large enough to be computing: at 24 a layer takes 20 to 300 us,
much of which is the same at any width."""
SEEDS = (0, 1, 2)
RATE = 3e-3


def show_distillation(bench: Bench, epochs: int) -> None:
    """The same student, steps and rate, with and without a teacher."""
    teacher = teacher_of(bench)
    ratio = parameters(Residual(bench.width)) / parameters(Residual(bench.width // STUDENTS))
    print(f"Distillation: a student of 1/{ratio:.1f} of the parameters, {epochs} epochs")
    ways = {
        "labels alone": {"alpha": 0.0},
        "teacher and labels": {"alpha": 0.9, "temperature": 2.0},
        "teacher, no labels": {"loss": "kl", "temperature": 2.0},
    }
    found: dict[str, list[float]] = {way: [] for way in ways}
    for seed in SEEDS:
        for way, settings in ways.items():
            config = DistillConfig(
                student_model_id="student", epochs=epochs, batch_size=BATCH, learning_rate=RATE,
                **settings,
            )  # fmt: skip
            data = bench.unlabelled if "no labels" in way else bench.train
            result, _, _ = bench.job(
                "distill", config, teacher, seed=seed, training=data,
                student=student_of(bench, seed),
            )  # fmt: skip
            found[way].append(points(result))
            print(f"  seed {seed}, {way}: {points(result):.2f} %", file=sys.stderr, flush=True)
    print(f"  {'teacher':22} top1 {before(result):.2f} %")
    for way, values in found.items():
        print(f"  {way:22} top1 {spread(values)}", flush=True)


def show_speed(bench: Bench, epochs: int) -> None:
    """A plain loop that runs the teacher at every step, against the engine's, taking turns."""
    teacher_file = teacher_of(bench)
    samples = len(bench.images.train)
    print(f"Speed: {epochs} epochs of {samples} images, all that each does from its first step on")
    rates: dict[str, list[float]] = {"plain": [], "engine": []}
    found: dict[str, list[float]] = {"plain": [], "engine": []}
    config = DistillConfig(
        student_model_id="student", epochs=epochs, batch_size=BATCH, learning_rate=RATE,
        temperature=4.0, validation_fraction=0.0, keep="last",
    )  # fmt: skip
    for seed in SEEDS:
        student_file = student_of(bench, seed)
        torch.set_num_threads(bench.threads)
        seconds, score = _plain_loop(bench.images, teacher_file, student_file, epochs, seed)
        rates["plain"].append(epochs * samples / seconds)
        found["plain"].append(score)
        result, watch, _ = bench.job(
            "distill", config, teacher_file, seed=seed, training=bench.train, student=student_file
        )
        rates["engine"].append(epochs * samples / watch.seconds["train"])
        found["engine"].append(points(result))
    for name in rates:
        mean = statistics.mean(rates[name])
        each = ", ".join(f"{rate:.0f}" for rate in rates[name])
        print(f"  {name:8} {mean:8.0f} images/s ({each})   top1 {spread(found[name])}")
    ratio = statistics.mean(rates["engine"]) / statistics.mean(rates["plain"])
    print(f"  {ratio:.2f} times the images", flush=True)


def _plain_loop(
    images: Images, teacher: Path, student: Path, epochs: int, seed: int
) -> tuple[float, float]:
    """As in a tutorial: AdamW, cosine, T = 4, alpha = 0.7."""
    teach, learn = torch.jit.load(teacher), torch.jit.load(student).train()
    torch.manual_seed(seed)
    optimizer = torch.optim.AdamW(learn.parameters(), lr=RATE)
    steps = epochs * (len(images.train) // BATCH)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    began = time.perf_counter()
    for _ in range(epochs):
        for rows in torch.randperm(len(images.train))[: steps // epochs * BATCH].view(-1, BATCH):
            inputs, labels = images.train[rows], images.train_label[rows]
            with torch.no_grad():
                wanted = teach(inputs)
            answer = learn(inputs)
            soft = F.kl_div(
                F.log_softmax(answer / 4, 1), F.softmax(wanted / 4, 1), reduction="batchmean"
            )
            loss = 0.7 * 16 * soft + 0.3 * F.cross_entropy(answer, labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    seconds = time.perf_counter() - began
    learn.eval()
    with torch.no_grad():
        answers = torch.cat([learn(part) for part in images.test.split(500)]).argmax(1)
    return seconds, 100 * float((answers == images.test_label).float().mean())


def show_qat(bench: Bench, epochs: int) -> None:
    """What post-training quantization loses, and how much of it training wins back."""
    print(f"Quantization-aware training, {epochs} epochs: top1 % of the int8 file")
    print(f"  {'':34}{'float':>8}{'before':>8}{'labels':>8}{'none':>8}   won back")
    for kind, width, settings in (
        (Depthwise, 16, {"granularity": "per_tensor"}),
        (Depthwise, 16, {"weight_dtype": "int4"}),
        (Residual, 8, {"weight_dtype": "int4"}),
    ):
        model = bench.save("float.pt", trained(kind, "clothes", bench.images, 3, width))
        none, _, _ = bench.job("qat", _untrained(settings), model, training=bench.train)
        ptq = points(none)
        reached = []
        for loss, data in (("both", bench.train), ("distill", bench.unlabelled)):
            config = QatConfig(
                epochs=epochs, batch_size=BATCH, learning_rate=1e-3, loss=loss, **settings
            )
            result, _, _ = bench.job("qat", config, model, training=data)
            reached.append(points(result))
        lost = before(none) - ptq
        won = ", ".join(f"{100 * (each - ptq) / lost:.0f} %" for each in reached)
        name = f"{kind.__name__} {' '.join(map(str, settings.values()))}"
        print(
            f"  {name:34}{before(none):8.2f}{ptq:8.2f}{reached[0]:8.2f}{reached[1]:8.2f}   {won}",
            flush=True,
        )
        if "granularity" in settings:  # what ptq itself has against it
            config = PtqConfig(equalize=True, bias_correction=True, **settings)
            weapons, _, _ = bench.job("ptq", config, model, calibration=bench.train)
            print(f"  {'ptq with its weapons':34}{'':8}{points(weapons):8.2f}", flush=True)


def _untrained(settings: Mapping[str, Any]) -> QatConfig:
    """One step at a rate of nothing: quantization as it starts."""
    return QatConfig(steps=1, batch_size=BATCH, learning_rate=1e-12, keep="last", **settings)


def show_pruning(bench: Bench, epochs: int) -> None:
    """Half the channels cut, the rest taught by the whole, then int8 on top."""
    teacher = teacher_of(bench)
    print(f"Pruning half the channels, {epochs} epochs of distillation, then int8")
    config = DistillConfig(
        prune=0.5, epochs=epochs, batch_size=BATCH, learning_rate=RATE, temperature=4.0
    )
    pruned, _, file = bench.job("distill", config, teacher, training=bench.train)
    int8, _, _ = bench.job("ptq", PtqConfig(), file, calibration=bench.train)
    print(f"  {'':10}{'top1 %':>8}{'bytes':>10}{'smaller':>9}{'faster':>9}")
    size = pruned.baseline.size_bytes
    print(f"  {'teacher':10}{before(pruned):8.2f}{size:10}")
    speedup = pruned.artifacts[0].speedup
    assert speedup is not None
    for name, result, faster in (
        ("pruned", pruned, f"{speedup.value:.2f}x"),
        ("int8", int8, ""),
    ):
        artifact = result.artifacts[0]
        ratio = size / artifact.size_bytes
        print(f"  {name:10}{points(result):8.2f}{artifact.size_bytes:10}{ratio:8.2f}x{faster:>9}")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--clothes", type=Path, required=True, help="folder with Fashion-MNIST's idx files"
    )
    parser.add_argument("--only", default="distill,speed,qat,prune,memory")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--width", type=int, help="of the teachers; a student has 1/3")
    arguments = parser.parse_args()
    only = arguments.only.split(",")
    with tempfile.TemporaryDirectory() as folder:
        torch.set_num_threads(arguments.threads)
        bench = Bench(read_images(arguments.clothes), Path(folder), arguments.threads)
        tables = {
            "distill": lambda: show_distillation(bench, arguments.epochs),
            "speed": lambda: show_speed(bench, arguments.epochs),
            "qat": lambda: show_qat(bench, max(1, arguments.epochs // 2)),
            "prune": lambda: show_pruning(bench, arguments.epochs),
            "memory": lambda: (teacher_of(bench), student_of(bench, 0), show_memory(bench)),
        }
        for name in only:
            bench.width = arguments.width or WIDTHS[name]
            tables[name]()


if __name__ == "__main__":
    main()
