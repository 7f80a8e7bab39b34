"""A job ends when it must: cancelled, out of time, out of memory, or out of disk."""

from __future__ import annotations

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from app.jobs.tables import FINISHED
from tests.faults.broker import wait_until
from tests.faults.conftest import Farm
from tests.faults.disks import small_disk
from tests.workers.rows import events_of


def stages_seen(farm: Farm, job_id: str) -> list[str]:
    return [
        event.data["stage"]
        for event in events_of(farm.database, job_id)
        if event.type == "stage" and event.data
    ]


def test_a_job_is_cancelled_within_five_seconds_at_every_stage(farm: Farm) -> None:
    farm.start_worker()
    cancelled = []
    for stage in ("fetch", "calibrate", "evaluate", "benchmark", "store"):
        job_id = farm.submit("quick" if stage in ("benchmark", "store") else "slow")
        wait_until(
            lambda job_id=job_id, stage=stage: (
                stage in stages_seen(farm, job_id)
                or farm.job(job_id).status in FINISHED
                or (stage == "fetch" and farm.job(job_id).status == "running")
            ),
            40, f"stage {stage}",
        )  # fmt: skip
        farm.request_cancel(job_id)
        wait_until(lambda job_id=job_id: farm.job(job_id).status in FINISHED, 5, "the end")
        status = farm.job(job_id).status
        if farm.job(job_id).cancel_requested_at is not None:  # it had not ended before
            cancelled.append(stage)
            assert status == "cancelled", f"at {stage}"
        farm.assert_ended_once(job_id, status)
    assert {"fetch", "calibrate", "evaluate", "benchmark"} <= set(cancelled)
    farm.assert_nothing_left()


def test_a_cancel_outlives_the_worker(farm: Farm) -> None:
    worker = farm.start_worker()
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    farm.stop_worker(worker, 9)
    farm.request_cancel(job_id)
    farm.start_worker()
    farm.wait_for(job_id, "cancelled", timeout_s=10)
    farm.assert_ended_once(job_id, "cancelled")
    farm.assert_nothing_left()


def test_a_job_that_takes_too_long_fails_with_timeout(farm: Farm) -> None:
    farm.start_worker()
    job_id = farm.submit("slow", timeout_s=1)
    job = farm.wait_for(job_id, "failed", timeout_s=15)
    assert job.error is not None
    assert (job.error["code"], job.error["retryable"]) == ("timeout", False)
    farm.assert_ended_once(job_id, "failed", attempts=1)
    farm.assert_nothing_left()


def test_a_job_that_takes_too_much_memory_fails_and_the_next_runs(farm: Farm) -> None:
    small = farm.start_worker(memory_bytes=8 * 2**20)
    job_id = farm.submit("slow")
    job = farm.wait_for(job_id, "failed")
    assert job.error is not None
    assert job.error["code"] == "out_of_memory"
    farm.assert_ended_once(job_id, "failed", attempts=1)
    farm.stop_worker(small)
    farm.start_worker()
    farm.wait_for(farm.submit("preflight"), "succeeded")
    farm.assert_nothing_left()


def test_a_database_locked_for_ten_seconds_delays_a_job_and_loses_nothing(farm: Farm) -> None:
    farm.start_worker(lease_s=3)
    farm.start_worker(lease_s=3)
    job_id = farm.submit("slow")
    farm.wait_running(job_id)
    connection = sqlite3.connect(farm.settings.data_dir / "tersor.db", isolation_level=None)
    connection.execute("BEGIN EXCLUSIVE")
    time.sleep(10)
    connection.execute("ROLLBACK")
    connection.close()
    farm.wait_for(job_id, "succeeded")
    farm.assert_ended_once(job_id, "succeeded", attempts=1)
    farm.assert_nothing_left()


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    with small_disk(tmp_path / "blobs", 64) as folder:
        yield folder


def test_a_full_disk_fails_the_job_and_leaves_the_worker_alive(full_soon: Path, farm: Farm) -> None:
    farm.start_worker()
    farm.wait_for(farm.submit("preflight"), "succeeded")
    filler = full_soon / "filler"
    with filler.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(b"\0" * 65536)
    assert shutil.disk_usage(full_soon).free < 65536
    job_id = farm.submit("quick")
    job = farm.wait_for(job_id, "failed")
    assert job.error is not None
    assert (job.error["code"], job.error["stage"]) == ("storage_full", "store")
    assert job.error["retryable"]
    farm.assert_ended_once(job_id, "failed", attempts=1)
    filler.unlink()
    again = farm.submit("quick")
    farm.wait_for(again, "succeeded")
    farm.assert_ended_once(again, "succeeded", attempts=1)
    farm.assert_nothing_left()
