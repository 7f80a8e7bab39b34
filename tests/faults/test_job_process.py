"""What a job's process is given, and what it is not, seen from outside while it runs."""

from __future__ import annotations

import os
from pathlib import Path

from app.jobs.tables import WorkerSeen
from tests.faults.broker import wait_until
from tests.faults.conftest import Farm
from tests.workers.rows import events_of


def test_a_jobs_process_has_no_secrets_no_descriptors_and_real_limits(farm: Farm) -> None:
    worker = farm.start_worker(memory_bytes=3 * 2**30, nice=7)
    job_id = farm.submit("slow", timeout_s=100)
    child = farm.wait_running(job_id)
    proc = Path(f"/proc/{child}")

    assert b"TERSOR" not in (proc / "environ").read_bytes()
    assert b"TERSOR" in Path(f"/proc/{worker}/environ").read_bytes()

    files = {int(fd.name): str(fd.readlink()) for fd in (proc / "fd").iterdir()}
    own_folder = str(farm.settings.data_dir / "work" / f"{job_id}-1")
    assert files[0] == "/dev/null"
    assert files[1] == files[2]
    assert all(files[fd].startswith("pipe:") for fd in (1, 3))
    extra = {path for fd, path in files.items() if fd > 3 and not path.startswith(own_folder)}
    assert not {path for path in extra if "socket" in path or "tersor.db" in path}, files

    limits = {
        line[:26].strip(): line[26:].split()[:2]
        for line in (proc / "limits").read_text().splitlines()[1:]
    }
    assert 3 * 2**30 <= int(limits["Max data size"][0]) < 6 * 2**30
    assert limits["Max core file size"] == ["0", "0"]
    assert limits["Max open files"] == ["256", "256"]
    assert limits["Max file size"][1].isdigit()
    assert int(limits["Max cpu time"][1]) >= 110

    status = dict(
        line.split(":\t", 1) for line in (proc / "status").read_text().splitlines() if ":\t" in line
    )
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert int(status["CapEff"], 16) == 0
    assert os.getsid(child) == child
    assert os.getpriority(os.PRIO_PROCESS, child) == 7
    farm.request_cancel(job_id)
    farm.wait_for(job_id, "cancelled")
    farm.assert_nothing_left()


def test_the_worker_holds_no_torch_and_the_zygote_has_one_thread(farm: Farm) -> None:
    worker = farm.start_worker()
    assert "libtorch" not in Path(f"/proc/{worker}/maps").read_text()
    zygote = farm.zygotes()[0]
    assert "libtorch" in Path(f"/proc/{zygote}/maps").read_text()
    assert len(list(Path(f"/proc/{zygote}/task").iterdir())) == 1
    with farm.database.read() as session:
        (seen,) = session.query(WorkerSeen).all()
    assert seen.queues == ["cpu"]
    assert seen.slots == 1
    wait_until(lambda: _info(farm).get("torch"), 5, "the worker tells its torch")
    assert _info(farm)["devices"] == ["cpu"]
    assert _info(farm)["sandbox"] == dict.fromkeys(
        ("rlimits", "no_new_privs", "landlock", "capabilities", "seccomp"), True
    )
    farm.assert_nothing_left()


def test_a_preflight_runs_in_the_sandbox_and_starts_in_three_tenths_of_a_second(
    farm: Farm,
) -> None:
    farm.start_worker(queues="inspect")
    starts = []
    for _ in range(4):
        job = farm.wait_for(farm.submit("preflight", queue="inspect"), "succeeded")
        assert job.result is not None
        assert job.result["counts"] == {"int8": 4}
        farm.assert_ended_once(job.id, "succeeded", attempts=1)
        starts.append(_first_stage_s(farm, job.id))
    assert min(starts) < 0.3, starts
    farm.assert_nothing_left()


def _info(farm: Farm) -> dict[str, object]:
    with farm.database.read() as session:
        (seen,) = session.query(WorkerSeen).all()
        return seen.info


def _first_stage_s(farm: Farm, job_id: str) -> float:
    events = events_of(farm.database, job_id)
    claimed = next(event.created_at for event in events if event.type == "status")
    began = next(event.created_at for event in events if event.type == "stage")
    return (began - claimed).total_seconds()
