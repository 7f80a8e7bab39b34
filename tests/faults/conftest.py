"""A broker, a database, a storage and worker processes of a test's own, all real."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.db import Database, migrate, utc_now
from app.jobs.tables import FINISHED, Artifact, Job
from app.queue import Publisher
from app.settings import BrokerSettings, DatabaseSettings, Settings, StorageSettings
from app.storage import open_store
from tests.databases import temporary_database
from tests.faults.broker import Broker, process_state, wait_until
from tests.workers.rows import add_dataset, add_job, add_model, get_job, statuses_of

FAULTS = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if FAULTS in item.path.parents:
            item.add_marker(pytest.mark.faults)


class Farm:
    """Everything a job needs, in a folder; workers are started by the tests."""

    def __init__(
        self, folder: Path, broker: Broker, files: dict[str, Path], database_url: str
    ) -> None:
        self.folder = folder
        self.broker = broker
        self.settings = Settings(data_dir=folder / "data")
        own = {
            "database": DatabaseSettings(url=database_url),
            "broker": BrokerSettings(url=f"redis+socket://{broker.socket}"),
            "storage": StorageSettings(url=f"file://{folder}/blobs"),
        }
        self.settings.__dict__.update(own)
        migrate(self.settings)
        self.publisher = Publisher(self.settings.broker_url)
        self.database = Database(self.settings, self.publisher)
        self.store = open_store(self.settings.storage_url)
        self.workers: list[subprocess.Popen[bytes]] = []
        self._files = files
        self._ids: dict[str, str] = {}

    def start_worker(self, *, slots: int = 1, queues: str = "cpu", **worker: Any) -> int:
        """Start a worker process and wait until it is ready to run jobs."""
        quick = {"lease_s": 3, "heartbeat_s": 0.2, "sweep_s": 0.3, "resend_after_s": 1}
        environment = dict(os.environ) | {
            "TERSOR_DATA_DIR": str(self.settings.data_dir),
            "TERSOR_DATABASE_URL": self.settings.database_url,
            "TERSOR_BROKER_URL": self.settings.broker_url,
            "TERSOR_STORAGE_URL": self.settings.storage_url,
            "TERSOR_SECRET_OF_THE_TEST": "not for jobs",
            **{f"TERSOR_WORKER_{k.upper()}": str(v) for k, v in (quick | worker).items()},
        }
        environment.setdefault("TERSOR_WORKER_THREADS", "1")
        log = self.folder / f"worker-{len(self.workers)}.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--queues", queues, "--slots", str(slots)],
                env=environment, stdout=output, stderr=output, start_new_session=True,
            )  # fmt: skip
        self.workers.append(process)
        wait_until(lambda: "ready to run jobs" in log.read_text(), 60, "the worker is ready")
        return process.pid

    def stop_worker(self, pid: int, number: int = signal.SIGTERM) -> float:
        """Send a signal, wait for the end, and return the seconds it took."""
        process = next(process for process in self.workers if process.pid == pid)
        began = time.monotonic()
        os.kill(pid, number)
        process.wait(10)
        return time.monotonic() - began

    def freeze(self, pid: int) -> None:
        """Stop a worker by SIGSTOP, but not in mid-write: SQLite would stay locked for everyone."""

        def is_frozen() -> bool:
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: process_state(pid) == "T", 5, "the worker stops")
            if self._can_write():
                return True
            os.kill(pid, signal.SIGCONT)
            return False

        wait_until(is_frozen, 20, "the worker stops outside a write")

    def submit(self, size: str = "quick", **values: Any) -> str:
        """Add a job and send its message.

        `slow` ones take some seconds, `poison` crashes its process, and `preflight` walks the
        same way in a fraction of a second.
        """
        model = self._id("poison" if size == "poison" else "model")
        data = self._id("large" if size == "slow" else "small")
        if size == "preflight":
            values = {"kind": "preflight"} | values
        spec = {
            "method": "ptq",
            "config": {},
            "calibration": {"dataset_id": data, "samples": 250, "batch_size": 1},
            "formats": ["torchscript"],
            "backend": "x86",
            "device": "cpu",
            "seed": 0,
        }
        return add_job(
            self.database, model_id=model, datasets={"calibration": data},
            **{"message": True, "spec": spec} | values,
        )  # fmt: skip

    def job(self, job_id: str) -> Job:
        return get_job(self.database, job_id)

    def wait_for(self, job_id: str, status: str, timeout_s: float = 60) -> Job:
        def reached() -> bool:
            now = self.job(job_id).status
            if now in FINISHED and now != status:
                raise AssertionError(f"{now} instead of {status}: {self.job(job_id).error}")
            return now == status

        wait_until(reached, timeout_s, f"{job_id} is {status}")
        return self.job(job_id)

    def wait_running(self, job_id: str, stage: str | None = None) -> int:
        """Wait until the job's process reports (a stage); return its pid."""

        def runs() -> bool:
            job = self.job(job_id)
            assert job.status not in FINISHED, f"too quick: {job.status} {job.error}"
            return job.stage == stage if stage else job.stage not in (None, "fetch")

        wait_until(runs, 60, f"{job_id} computes")
        return wait_until(self.children, 5, "a child")[0]

    def request_cancel(self, job_id: str) -> None:
        """Do what the API does for a running job."""
        with self.database.write() as session:
            job = session.get(Job, job_id)
            assert job is not None
            if job.status == "running":
                job.cancel_requested_at = utc_now()
                job.version += 1

    def zygotes(self) -> list[int]:
        workers = {process.pid for process in self.workers}
        return [pid for pid, parent in self._family().items() if parent in workers]

    def children(self) -> list[int]:
        zygotes = self.zygotes()
        return [pid for pid, parent in self._family().items() if parent in zygotes]

    def assert_ended_once(self, job_id: str, status: str, attempts: int | None = None) -> None:
        job = self.job(job_id)
        assert job.status == status, job.error
        ends = [name for name in statuses_of(self.database, job_id) if name in FINISHED]
        assert ends == [status]
        assert attempts in (None, job.attempt)
        assert job.owner is None
        with self.database.read() as session:
            rows = session.query(Artifact).filter_by(job_id=job_id).all()
        stored = Path(f"{self.folder}/blobs/jobs/{job_id}")
        files = {
            str(path.relative_to(self.folder / "blobs"))
            for path in stored.rglob("*")
            if path.is_file()
        }
        assert files == {row.storage_key for row in rows}
        if status == "succeeded":
            assert job.result
        if status == "succeeded" and job.kind == "job":
            assert {artifact["id"] for artifact in job.result["artifacts"]} == {
                row.id for row in rows if row.kind == "model"
            }
            assert all(f"/{job.fence}/" in row.storage_key for row in rows)
        else:
            assert rows == []

    def assert_nothing_left(self) -> None:
        """Stop the workers: no process and no file of a job is there any more."""
        for process in self.workers:
            if process.poll() is None:
                assert self.stop_worker(process.pid) < 6
        wait_until(lambda: not self._family(), 5, f"no process is left: {self._family()}")
        for name in ("work", "checkpoints"):
            folder = self.settings.data_dir / name
            assert not folder.exists() or list(folder.iterdir()) == []
        assert list((self.folder / "blobs" / "staging").iterdir()) == []

    def close(self) -> None:
        for process in self.workers:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
                process.wait()
        self.publisher.close()
        self.database.close()

    def _can_write(self) -> bool:
        url = self.database.engine.url
        if url.get_backend_name() != "sqlite":
            return True  # there a lock is one row's, and its owner can lose it
        with closing(sqlite3.connect(str(url.database), 0.2, isolation_level=None)) as connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            connection.execute("ROLLBACK")
            return True

    def _id(self, name: str) -> str:
        if name not in self._ids:
            path = self._files[name]
            if path.suffix == ".pt":
                self._ids[name] = add_model(self.database, self.store, path)
            else:
                self._ids[name] = add_dataset(self.database, self.store, path, 1)
        return self._ids[name]

    def _family(self) -> dict[int, int]:
        """Return pid -> parent of every zygote and child of our workers, orphans too."""
        ours = {str(process.pid) for process in self.workers}
        family = {}
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            with suppress(FileNotFoundError, ProcessLookupError):
                command = (folder / "cmdline").read_text().split("\0")
                if "workers.zygote" in command and command[-2] in ours:
                    status = (folder / "stat").read_text().rpartition(")")[2].split()
                    if status[0] != "Z":
                        family[int(folder.name)] = int(status[1])
        return family


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A convolutional net, data that calibrates it fast and slowly, and a file that crashes."""
    folder = tmp_path_factory.mktemp("inputs")
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(1024, 512), nn.ReLU(), nn.Linear(512, 10),
    ).eval()  # fmt: skip
    torch.jit.save(torch.jit.trace(net, torch.zeros(1, 3, 32, 32)), str(folder / "model.pt"))
    _write_poison(folder / "model.pt", folder / "poison.pt")
    generator = np.random.default_rng(0)
    for name, samples in (("small", 32), ("large", 250)):
        inputs = generator.standard_normal((samples, 3, 32, 32), dtype=np.float32)
        np.savez(folder / f"{name}.npz", input=inputs)
    return {path.stem: path for path in folder.iterdir()}


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    broker = Broker(tmp_path)
    broker.start()
    yield broker
    broker.kill()


@pytest.fixture
def farm(tmp_path: Path, broker: Broker, files: dict[str, Path]) -> Iterator[Farm]:
    farm = Farm(tmp_path, broker, files, f"sqlite:///{tmp_path}/data/tersor.db")
    yield farm
    farm.close()


@pytest.fixture
def postgres_farm(tmp_path: Path, broker: Broker, files: dict[str, Path]) -> Iterator[Farm]:
    with temporary_database() as url:
        farm = Farm(tmp_path, broker, files, url)
        yield farm
        farm.close()


def _write_poison(model: Path, poison: Path) -> None:
    """Nest the code of forward so deeply that the parser runs out of stack."""
    poisoned = 0
    with zipfile.ZipFile(model) as source, zipfile.ZipFile(poison, "w") as target:
        for entry in source.namelist():
            content = source.read(entry)
            # after other tests' traces in this process: container/___torch_mangle_7.py
            if re.search(r"code/__torch__/torch/nn/modules/container\b.*\.py$", entry):
                poisoned += 1
                depth = 200_000
                nested = b"return " + b"(" * depth + b"input" + b")" * depth + b"\n"
                content = content[: content.index(b"    _0 = ")] + b"    " + nested
            target.writestr(entry, content)
    assert poisoned == 1
