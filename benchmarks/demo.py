"""The whole way in half a minute: train a small net, compress it over HTTP, check every claim.

    make demo        or        python benchmarks/demo.py

Trains a convolutional net on scikit-learn's digits, traces it, starts `tersor up` in a folder of
its own, and from then on is a client like any other: upload, submit, watch, download. Then it
loads the int8 file with plain `torch.jit.load` and compares size and accuracy with what the
service reported. Exit status 1 if anything does not hold.
"""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F

from tersor import Client, Job, TersorError
from tersor.cli.figures import print_result

Split = tuple[Tensor, Tensor, Tensor, Tensor]
FLOAT_ACCURACY = 0.97
MOST_DROP = 0.01
LEAST_RATIO = 2.5


class Net(nn.Module):
    """Three convolutions with batch norm and two linear layers: 8 x 8 images to ten digits."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(64)
        self.conv2 = nn.Conv2d(64, 128, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(128)
        self.conv3 = nn.Conv2d(128, 192, 3, padding=1, bias=False)
        self.norm3 = nn.BatchNorm2d(192)
        self.hidden = nn.Linear(192 * 4, 128)
        self.out = nn.Linear(128, 10)

    def forward(self, image: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(image)))
        x = F.max_pool2d(F.relu(self.norm2(self.conv2(x))), 2)
        x = F.max_pool2d(F.relu(self.norm3(self.conv3(x))), 2)
        return self.out(F.relu(self.hidden(torch.flatten(x, 1))))


class CheckFailed(Exception):
    """A claim does not hold."""


def check(claim: str, holds: bool, figures: str) -> None:
    """Print the claim; stop if it does not hold."""
    print(f"  {'ok' if holds else 'NO'}  {claim}: {figures}")
    if not holds:
        raise CheckFailed(f"{claim}: {figures}")


def load_split() -> Split:
    """Return train and held-out images [n, 1, 8, 8] in 0..1, and their classes."""
    digits = load_digits()
    parts = train_test_split(
        torch.from_numpy(digits.images).float().unsqueeze(1) / 16.0,
        torch.from_numpy(digits.target),
        test_size=0.25, random_state=0, stratify=digits.target,
    )  # fmt: skip
    train_x, test_x, train_y, test_y = parts
    return train_x, train_y, test_x, test_y


def train(split: Split) -> Net:
    """Train until the held-out accuracy is over 97 %."""
    train_x, train_y, test_x, test_y = split
    net = Net()
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _epoch in range(40):
        net.train()
        for rows in torch.randperm(len(train_x)).split(64):
            optimizer.zero_grad()
            F.cross_entropy(net(train_x[rows]), train_y[rows]).backward()
            optimizer.step()
        if accuracy(net.eval(), test_x, test_y) > FLOAT_ACCURACY + 0.01:
            break
    return net.eval()


@torch.no_grad()
def accuracy(net: nn.Module, images: Tensor, classes: Tensor) -> float:
    """Return the fraction of images whose highest output is their class."""
    return (net(images).argmax(1) == classes).double().mean().item()


@contextmanager
def running_service(data_dir: Path) -> Iterator[Client]:
    """Start `tersor up` on a free port, yield a client of it, stop it."""
    log = data_dir.with_suffix(".log")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("TERSOR_")},
        "XDG_STATE_HOME": str(data_dir.parent),  # the user's own last server stays on record
    }
    command = [sys.executable, "-m", "tersor", "up", "--data-dir", str(data_dir), "--port", "0"]
    with log.open("w") as output:
        service = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
    try:
        deadline = time.monotonic() + 120
        while "Ctrl-C" not in log.read_text():
            if service.poll() is not None or time.monotonic() > deadline:
                raise CheckFailed(f"the service did not start: {log.read_text().strip()}")
            time.sleep(0.1)
        access = json.loads((data_dir / "credentials.json").read_text())
        with Client(access["url"], access["key"]) as client:
            yield client
    finally:
        service.send_signal(signal.SIGINT)
        try:
            service.wait(30)
        except subprocess.TimeoutExpired:
            service.kill()
            service.wait()


def compress(client: Client, model_file: Path, split: Split) -> Job:
    """Do what any client does: upload, submit, watch."""
    train_x, _, test_x, test_y = split
    model = client.models.upload(model_file, name="digits")
    calibration = client.datasets.from_arrays("digits-train", input=train_x)
    evaluation = client.datasets.from_arrays("digits-held-out", input=test_x, label=test_y)
    job = client.jobs.submit(
        "ptq", model,
        calibration={"dataset_id": calibration.id, "samples": 512},
        evaluation={"dataset_id": evaluation.id, "metric": "top1"},
        labels={"from": "demo"},
    )  # fmt: skip
    stage: str | None = None

    def tell(now: Job) -> None:
        nonlocal stage
        if now.stage != stage:
            stage = now.stage
            print(f"  {now.stage:<10} {now.progress:4.0%}  {now.message}")

    print(f"submitted {job.id}")
    return job.wait(timeout_s=300, on_change=tell)


def verify(job: Job, model_file: Path, folder: Path, split: Split, float_top1: float) -> None:
    """Load what came back with plain PyTorch and compare it with the report."""
    _, _, test_x, test_y = split
    result = job.result
    if result is None or not result.artifacts:
        raise CheckFailed("the job has no result")
    [report] = result.artifacts
    [path] = job.download(folder, report)
    size_bytes, ratio = path.stat().st_size, model_file.stat().st_size / path.stat().st_size
    loaded = torch.jit.load(str(path)).eval()
    top1 = accuracy(loaded, test_x, test_y)
    reported = report.quality.value if report.quality else None
    before = result.baseline.quality.value if result.baseline.quality else None
    print(f"loaded {path.name} with torch.jit.load; does the report hold?")
    check(
        "size", report.size_bytes == size_bytes, f"{report.size_bytes} reported, {size_bytes} here"
    )
    check(
        "at least 2.5 times smaller", ratio >= LEAST_RATIO,
        f"{model_file.stat().st_size} -> {size_bytes} bytes, {ratio:.2f}x",
    )  # fmt: skip
    check(
        "accuracy before", before is not None and abs(before - float_top1) < 1e-9,
        f"{before} reported, {float_top1} here",
    )  # fmt: skip
    check(
        "accuracy after", reported is not None and abs(reported - top1) < 1e-9,
        f"{reported} reported, {top1} here",
    )  # fmt: skip
    drop = float_top1 - top1
    check("drop of one point at most", drop <= MOST_DROP, f"{100 * drop:+.2f} points")
    check("other batch sizes", all(len(loaded(test_x[:n])) == n for n in (1, 7)), "1 and 7 images")


def run() -> None:
    """Run the demo."""
    began = time.monotonic()
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(line_buffering=True)  # whoever pipes it sees it as it happens
    torch.manual_seed(0)
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(prefix="tersor-demo-") as name:
        folder = Path(name)
        split = load_split()
        print("training a small convolutional net on scikit-learn's digits")
        net = train(split)
        float_top1 = accuracy(net, split[2], split[3])
        check("held-out accuracy over 97 %", float_top1 > FLOAT_ACCURACY, f"{float_top1:.4f}")
        model_file = folder / "digits.pt"
        torch.jit.trace(net, split[0][:1]).save(str(model_file))

        print("starting the service")
        with running_service(folder / "data") as client:
            print(f"it listens on {client.url}")
            job = compress(client, model_file, split)
            print()
            if job.result is not None:
                print_result(job.result)
            print()
            verify(job, model_file, folder, split, float_top1)
    print(f"all of it holds, after {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    try:
        run()
    except (CheckFailed, TersorError) as error:
        sys.exit(f"the demo failed: {error}")
