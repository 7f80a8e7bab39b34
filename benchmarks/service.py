"""How quickly the service answers and starts jobs, measured through HTTP on a service of its own.

Prints the time from submit to start on an idle service, and the latency of `GET /v1/jobs/{id}`
idle and while a ResNet-18 is quantized on all cores.

    python benchmarks/service.py [--starts 20] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.compress.zoo import mlp, resnet18


@contextmanager
def running_service(folder: Path) -> Iterator[httpx.Client]:
    """Start `tersor up` on a free port and yield a client with its key; stop it afterwards."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tersor", "up", "--data-dir", str(folder), "--port", "0"],
        stdout=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 90
        while True:
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit("the service did not start")
            time.sleep(0.1)
            try:
                access = json.loads((folder / "credentials.json").read_text())
                if httpx.get(f"{access['url']}/readyz", trust_env=False).is_success:
                    break
            except (FileNotFoundError, httpx.HTTPError):
                continue
        with httpx.Client(
            base_url=access["url"],
            headers={"Authorization": f"Bearer {access['key']}"},
            timeout=60,
            trust_env=False,
        ) as client:
            yield client
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(30)


def upload(client: httpx.Client, kind: str, path: Path) -> str:
    with path.open("rb") as file:
        answer = client.post(f"/v1/{kind}", files={"file": file}, data={"name": path.name})
    answer.raise_for_status()
    return str(answer.json()["id"])


def seconds(earlier: str, later: str) -> float:
    return (datetime.fromisoformat(later) - datetime.fromisoformat(earlier)).total_seconds()


def percentiles(values_ms: list[float]) -> dict[str, float]:
    cuts = statistics.quantiles(values_ms, n=100, method="inclusive")
    return {"p50": cuts[49], "p99": cuts[98], "max": max(values_ms), "n": len(values_ms)}


def submit(client: httpx.Client, model: str, dataset: str, samples: int) -> dict[str, Any]:
    answer = client.post(
        "/v1/jobs",
        json={
            "method": "ptq",
            "model_id": model,
            "calibration": {"dataset_id": dataset, "samples": samples},
        },
    )
    answer.raise_for_status()
    return dict(answer.json())


def measure_starts(client: httpx.Client, model: str, dataset: str, count: int) -> list[float]:
    """Return milliseconds from created to started, one job at a time."""
    starts = []
    for _ in range(count):
        job = submit(client, model, dataset, samples=32)
        while not job["finished"]:
            job = client.get(job["urls"]["self"], headers={"Prefer": "wait=30"}).json()
        if job["status"] != "succeeded":
            raise SystemExit(f"job ended {job['status']}: {job['error']}")
        starts.append(1e3 * seconds(job["created_at"], job["started_at"]))
    return starts


def measure_polls(client: httpx.Client, url: str, count: int | None = None) -> list[float]:
    """Return milliseconds per GET of a job, about 50 a second, until it ends or `count`."""
    polls = []
    while count is None or len(polls) < count:
        began = time.perf_counter()
        answer = client.get(url)
        polls.append(1e3 * (time.perf_counter() - began))
        answer.raise_for_status()
        if count is None and answer.json()["finished"]:
            return polls
        time.sleep(0.02)
    return polls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--starts", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    torch.set_num_threads(os.cpu_count() or 1)
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as folder_name:
        folder = Path(folder_name)
        small, large = mlp(64).eval(), resnet18().eval()
        torch.jit.trace(small, torch.rand(1, 64)).save(str(folder / "mlp.pt"))
        torch.jit.trace(large, torch.rand(1, 3, 224, 224)).save(str(folder / "resnet18.pt"))
        random = np.random.default_rng(0)
        np.savez(folder / "vectors.npz", input=random.random((64, 64), np.float32))
        np.savez(folder / "images.npz", input=random.random((128, 3, 224, 224), np.float32))
        with running_service(folder / "data") as client:
            ids = {
                path.name: upload(client, kind, path)
                for kind, pattern in (("models", "*.pt"), ("datasets", "*.npz"))
                for path in folder.glob(pattern)
            }
            starts = measure_starts(client, ids["mlp.pt"], ids["vectors.npz"], arguments.starts)
            done = client.get("/v1/jobs?limit=1").json()["data"][0]["urls"]["self"]
            idle = measure_polls(client, done, count=300)
            job = submit(client, ids["resnet18.pt"], ids["images.npz"], samples=128)
            busy = measure_polls(client, job["urls"]["self"])
            job = client.get(job["urls"]["self"]).json()
        figures = {
            "submit_to_start_ms": percentiles(starts),
            "poll_idle_ms": percentiles(idle),
            "poll_while_computing_ms": percentiles(busy),
            "resnet18_job_s": seconds(job["started_at"], job["finished_at"]),
            "resnet18_job_status": job["status"],
        }
    if arguments.json:
        print(json.dumps(figures))
        return
    print(f"{'':28}{'p50':>9}{'p99':>9}{'max':>9}{'n':>7}")
    for name in ("submit_to_start_ms", "poll_idle_ms", "poll_while_computing_ms"):
        row = figures[name]
        print(f"{name:28}{row['p50']:9.1f}{row['p99']:9.1f}{row['max']:9.1f}{row['n']:7d}")
    print(f"\nresnet18_job_s {figures['resnet18_job_s']:.1f} ({figures['resnet18_job_status']})")


if __name__ == "__main__":
    main()
