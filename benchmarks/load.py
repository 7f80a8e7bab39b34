"""How the service bears load: many clients, full tables, large uploads; on a service of its own.

Prints tables: what 300 clients get who ask for a job that a worker computes; what a request costs
with 100 to 100,000 jobs in the table; what memory uploads take; what a job costs beside its work.

    python benchmarks/load.py [--only polls,rows,uploads,jobs] [--seconds 10] [--clients 300]
        [--rows 100,10000,100000] [--drain 10000] [--upload-mib 1024] [--json]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
from sqlalchemy import delete

sys.path.insert(0, str(Path(__file__).parent.parent))
from app.db import Database, utc_now
from app.jobs.tables import Job, WorkerSeen
from app.models.scan import scan_model
from app.settings import Settings
from benchmarks.polling import Answers, Computing, poll
from benchmarks.polling import upload as send_at_once
from benchmarks.rows import add_jobs
from benchmarks.service import measure_starts, percentiles, running_service, seconds, upload
from tests.compress.zoo import mlp, resnet18
from workers.lease import claim

REQUESTS = 60
UPLOADS = 8
STARTS = 5


class _Undone(Exception):
    """Rolls back what was timed."""


class Bench:
    """A running service with a small and a usual model, and what the tables need of it."""

    def __init__(self, client: httpx.Client, folder: Path, options: argparse.Namespace) -> None:
        self.client, self.folder, self.options = client, folder, options
        self.settings = Settings(data_dir=folder / "data")
        torch.jit.trace(mlp(64).eval(), torch.rand(1, 64)).save(str(folder / "mlp.pt"))
        torch.jit.trace(resnet18().eval(), torch.rand(1, 3, 224, 224)).save(
            str(folder / "resnet18.pt")
        )
        random = np.random.default_rng(0)
        np.savez(folder / "vectors.npz", input=random.random((64, 64), np.float32))
        np.savez(folder / "images.npz", input=random.random((128, 3, 224, 224), np.float32))
        self.ids = {
            path.name: upload(client, kind, path)
            for kind, pattern in (("models", "*.pt"), ("datasets", "*.npz"))
            for path in folder.glob(pattern)
        }

    def api_status(self, name: str) -> float:
        """Return a field of the API process's status, in MiB."""
        lines = (Path("/proc") / str(self._api_pid()) / "status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024

    def api_cpu_s(self) -> float:
        """Return the processor time that the API process has had."""
        stat = (
            (Path("/proc") / str(self._api_pid()) / "stat").read_text().rpartition(")")[2].split()
        )
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def forget_peak(self) -> None:
        (Path("/proc") / str(self._api_pid()) / "clear_refs").write_text("5")

    def _api_pid(self) -> int:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                command = (process / "cmdline").read_bytes().split(b"\0")
                variables = (process / "environ").read_bytes()
            except (FileNotFoundError, ProcessLookupError, PermissionError):
                continue  # it ended while we looked, or is somebody else's
            if b"app" in command and str(self.folder / "data").encode() in variables:
                return int(process.name)
        raise SystemExit("the API process is gone")


def measure_polling(bench: Bench) -> list[dict[str, Any]]:
    clients, time_s = bench.options.clients, bench.options.seconds
    ways: dict[str, dict[str, Any]] = {
        "GET, one after the other": {},
        "GET, once a second": {"every_s": 1.0},
        "Prefer: wait=10": {"Prefer": "wait=10"},
    }
    rows = []
    ids = bench.ids
    with Computing(bench.client, ids["resnet18.pt"], ids["images.npz"]) as computing:
        for name, options in ways.items():
            before_s = bench.api_cpu_s()
            found: Answers = poll(bench.client, computing.path, clients, time_s, **options)
            rows.append(
                {
                    "clients": f"{clients} x {name}",
                    "requests_per_s": len(found.latencies_ms) / found.seconds,
                    "cpu_ms": 1e3 * (bench.api_cpu_s() - before_s) / len(found.latencies_ms),
                    **percentiles(found.latencies_ms),
                    "errors": len(found.errors),
                }
            )
            for error in sorted(set(found.errors))[:3]:
                print(f"  ! {error}", file=sys.stderr)
    return rows


def measure_rows(bench: Bench) -> list[dict[str, Any]]:
    """Median milliseconds of each request with ever more jobs, half of them queued."""
    database = Database(bench.settings)
    # jobs for a queue that nobody works off, so that none starts in between
    with database.write() as session:
        session.merge(
            WorkerSeen(
                id="benchmark", queues=["gpu"], slots=1, info={"devices": ["cuda:0"]},
                started_at=utc_now(), seen_at=utc_now() + timedelta(days=1),
            )
        )  # fmt: skip
    body = {
        "method": "qat", "model_id": bench.ids["mlp.pt"], "device": "cuda",
        "training_dataset_id": bench.ids["vectors.npz"], "config": {"batch_size": 8},
    }  # fmt: skip
    made = bench.client.post("/v1/jobs", json=body)
    made.raise_for_status()
    with database.read() as session:
        like = session.get_one(Job, made.json()["id"])
    rows, there = [], 0
    for wanted in bench.options.rows:
        add_jobs(database, like, (wanted - there) // 2, "queued")
        last = add_jobs(database, like, (wanted - there) // 2, "succeeded", result={"n": 1})
        there = wanted
        rows.append({"rows": wanted, **_time_requests(bench, database, body, last[-1])})
    queued = add_jobs(database, like, bench.options.drain, "queued")
    times = [_timed(lambda each=each: _cancel(bench.client, each)) for each in queued]
    part = max(1, len(times) // 10)
    rows.append({"rows": f"{len(times)} cancelled, first tenth", "cancel": _median(times[:part])})
    rows.append({"rows": f"{len(times)} cancelled, last tenth", "cancel": _median(times[-part:])})
    with database.write() as session:
        session.execute(delete(WorkerSeen).where(WorkerSeen.id == "benchmark"))
    database.close()
    return rows


def _time_requests(
    bench: Bench, database: Database, body: dict[str, Any], finished: str
) -> dict[str, float]:
    client = bench.client
    jobs: list[str] = []

    def submit_one() -> None:
        answer = client.post("/v1/jobs", json=body)
        answer.raise_for_status()
        jobs.append(answer.json()["id"])

    def claim_one() -> None:
        with suppress(_Undone), database.write() as session:
            claim(session, ("gpu", "cpu"), "benchmark", 30)
            raise _Undone  # the job stays queued

    def get(path: str) -> Callable[[], object]:
        return lambda: client.get(path).raise_for_status()

    times = {"submit": _median([_timed(submit_one) for _ in range(REQUESTS)])}
    asked = {
        "get_queued": get(f"/v1/jobs/{jobs[-1]}"),
        "get_ended": get(f"/v1/jobs/{finished}"),
        "list": get("/v1/jobs?limit=20"),
        "list_by_status": get("/v1/jobs?limit=20&status=queued"),
        "list_by_label": get("/v1/jobs?limit=20&label=row:copy"),
        "list_none": get("/v1/jobs?limit=20&method=convert"),
        "metrics": get("/metrics"),
        "claim": claim_one,
    }
    times |= {name: _median([_timed(ask) for _ in range(REQUESTS)]) for name, ask in asked.items()}
    times["cancel"] = _median([_timed(lambda each=each: _cancel(client, each)) for each in jobs])
    return times


def _cancel(client: httpx.Client, job_id: str) -> None:
    client.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()


def _timed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - began)


def _median(values_ms: list[float]) -> float:
    return statistics.median(values_ms)


def measure_uploads(bench: Bench) -> list[dict[str, Any]]:
    mib = bench.options.upload_mib
    rows = []
    for count in (1, UPLOADS):
        head = {"Tus-Resumable": "1.0.0", "Upload-Length": str(mib << 20)}
        paths = []
        for _ in range(count):
            made = bench.client.post("/v1/uploads", headers=head)
            made.raise_for_status()
            paths.append(httpx.URL(made.headers["Location"]).path)
        bench.forget_peak()
        before = bench.api_status("VmRSS")
        found = send_at_once(bench.client, paths, mib)
        rows.append(
            {
                "uploads": f"{count} x {mib} MiB",
                "memory_before_mib": before,
                "memory_peak_mib": bench.api_status("VmHWM"),
                "took_s": found.seconds,
                "mib_per_s": count * mib / found.seconds,
                "errors": len(found.errors),
            }
        )
        for path in paths:
            bench.client.delete(path, headers={"Tus-Resumable": "1.0.0"}).raise_for_status()
    return rows


def measure_jobs(bench: Bench) -> list[dict[str, Any]]:
    """What a job costs beside its work: the scan of its model, and the way to its own process."""
    model = bench.folder / "resnet18.pt"
    starts = measure_starts(bench.client, bench.ids["mlp.pt"], bench.ids["vectors.npz"], STARTS)
    processes = []
    for job in bench.client.get(f"/v1/jobs?limit={STARTS}&status=succeeded").json()["data"]:
        events = bench.client.get(job["urls"]["events"]).json()["data"]
        at = {(each["data"] or {}).get("stage", each["message"]): each for each in events}
        processes.append(1e3 * seconds(at["running"]["created_at"], at["load"]["created_at"]))
    times = {
        "scan of a ResNet-18": [_timed(lambda: scan_model(model)) for _ in range(20)],
        "submit to claim": starts,
        "claim to the sandboxed process at work": processes,
    }
    return [{"what": name, **percentiles(values)} for name, values in times.items()]


TABLES = {
    "polls": measure_polling,
    "jobs": measure_jobs,
    "uploads": measure_uploads,
    "rows": measure_rows,
}


def show(name: str, rows: list[dict[str, Any]]) -> None:
    """Print a table; times are milliseconds unless their name says otherwise."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns] + [
        [f"{cell:.1f}" if isinstance(cell := row.get(each, ""), float) else str(cell)
         for each in columns]
        for row in rows
    ]  # fmt: skip
    widths = [max(len(line[place]) for line in lines) for place in range(len(columns))]
    print(f"\n{name}")
    for line in lines:
        first, *rest = [cell.rjust(width) for cell, width in zip(line, widths, strict=True)]
        print("  ".join([first.strip().ljust(widths[0]), *rest]), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default=",".join(TABLES))
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--clients", type=int, default=300)
    parser.add_argument(
        "--rows", default=[100, 10_000, 100_000],
        type=lambda text: sorted(int(each) for each in text.split(",")),
    )  # fmt: skip
    parser.add_argument("--drain", type=int, default=10_000)
    parser.add_argument("--upload-mib", type=int, default=1024)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    figures = {}
    with tempfile.TemporaryDirectory(prefix="tersor-bench-") as name:
        folder = Path(name)
        with running_service(folder / "data") as client:
            bench = Bench(client, folder, options)
            for table in options.only.split(","):
                figures[table] = TABLES[table](bench)
                if not options.json:
                    show(table, figures[table])
    if options.json:
        print(json.dumps(figures))


if __name__ == "__main__":
    main()
