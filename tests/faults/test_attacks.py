"""Attacks on real workers that no scan stood before: the sandbox alone must hold."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from app.errors import Unprocessable
from app.jobs.tables import Job, WorkerSeen
from app.models.scan import scan_model
from tests.corpus.programs import PROGRAMS, Program, model
from tests.faults.broker import wait_until
from tests.faults.conftest import Farm
from tests.workers.rows import add_dataset, add_job, add_model
from tests.workers.test_sandbox import HARMLESS_TO_TRY, NEEDED

ROOT = Path(__file__).parents[2]
SECRET = b"secret"
SOUND = model("return torch.relu(y0)")
RUN = """
import sys, torch
print(torch.jit.load(sys.argv[1])(torch.zeros(1, 4))[0, 0].item())
"""
TAKE_OVER = '''
"""Puts an attacker into the place of the engine, in the zygote alone."""
import sys
if "workers.zygote" in sys.orig_argv:
    import errno, os, signal, socket
    from pathlib import Path
    import compress.pipeline
    from tests.workers.attempts import attempts

    folder, victim, port = Path({folder!r}), {victim}, {port}
    def connect(kind, address):
        with socket.socket(kind) as one:
            one.connect(address)
    def take_over(spec, inputs, sink):
        did = {{}}
        tries = {{
            "connect": lambda _: connect(socket.AF_INET, ("127.0.0.1", port)),
            "connect to the broker": lambda _: connect(socket.AF_UNIX, {broker!r}),
            "read the database": lambda _: Path({database!r}).read_bytes(),
            "list the storage": lambda _: os.listdir({blobs!r}),
            "read beside the program": lambda _: Path({program!r}).read_bytes(),
            "kill another process": lambda _: os.kill(victim, signal.SIGKILL),
            "read another process": lambda _: Path(f"/proc/{{victim}}/environ").read_bytes(),
            **attempts(folder),
        }}
        for name, attempt in tries.items():
            try:
                attempt(os.getppid())
                did[name] = "done"
            except (OSError, MemoryError, ValueError, OverflowError) as error:
                did[name] = type(error).__name__
        return {{"did": did}}
    compress.pipeline.preflight = take_over
'''


def submit(farm: Farm, path: Path, shape: tuple[int, ...] = (4,), **values: Any) -> str:
    """Hand a worker a file that no API has seen, and samples of this shape."""
    data = farm.folder / f"{'x'.join(map(str, shape))}.npz"
    if not data.exists():
        np.savez(data, input=np.random.default_rng(0).random((8, *shape), dtype=np.float32))
    dataset = add_dataset(farm.database, farm.store, data, 8)
    spec = {
        "method": "convert", "config": {"precision": "fp32"}, "formats": ["torchscript"],
        "calibration": {"dataset_id": dataset, "samples": 8, "batch_size": 1},
        "backend": "x86", "device": "cpu", "seed": 0,
    }  # fmt: skip
    values = {"method": "convert", "spec": spec} | values
    return add_job(
        farm.database, model_id=add_model(farm.database, farm.store, path), message=True,
        datasets={"calibration": dataset}, **values,
    )  # fmt: skip


def ended(farm: Farm, job_id: str, timeout_s: float = 60) -> Job:
    wait_until(lambda: farm.job(job_id).status in ("failed", "succeeded"), timeout_s, "an end")
    return farm.job(job_id)


def skip_without_walls(farm: Farm) -> None:
    def walls() -> dict[str, bool]:
        with farm.database.read() as session:
            (seen,) = session.query(WorkerSeen).all()
        return dict(seen.info.get("sandbox", {}))

    found = wait_until(walls, 10, "the worker tells its walls")
    if not all(found.values()):
        pytest.skip(f"this kernel lacks walls: {found}")


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_the_scan_refuses_each_attack(program: Program, tmp_path: Path) -> None:
    """Or, where it only starves, lets it to the sandbox: what a loop costs, no scan can tell."""
    path = tmp_path / "m.pt"
    path.write_bytes(program.build(tmp_path / "marker"))
    if program.does == "starves":
        assert scan_model(path).is_canonical
        return
    with pytest.raises(Unprocessable) as refused:
        scan_model(path)
    assert refused.value.code == "operation_not_allowed"


@pytest.mark.parametrize("program", [each for each in PROGRAMS if each.does != "starves"], ids=str)
def test_each_attack_is_real(program: Program, tmp_path: Path) -> None:
    """Without walls it does what it says, so that it is the walls that stop it."""
    marker = tmp_path / "marker"
    if program.does != "makes":
        marker.write_bytes(SECRET)
    path = tmp_path / "m.pt"
    path.write_bytes(program.build(marker))
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(path)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    if program.does == "reads":
        assert float(done.stdout) == sum(SECRET)
    else:
        assert marker.read_bytes() != SECRET


def test_the_sandbox_alone_holds_models_that_attack(farm: Farm) -> None:
    worker = farm.start_worker(memory_bytes=2**29)
    skip_without_walls(farm)
    for number, program in enumerate(PROGRAMS):
        marker = farm.folder / f"marker-{number}"
        if program.does != "makes":
            marker.write_bytes(SECRET)
        path = farm.folder / f"attack-{number}.pt"
        path.write_bytes(program.build(marker))
        began = time.monotonic()
        job = ended(farm, submit(farm, path, timeout_s=4 if program.code == "timeout" else 60))
        error = job.error or {"code": None, "message": ""}
        assert program.code in (error["code"], None), (program.name, error)
        assert str(farm.folder) not in error["message"], program.name
        assert time.monotonic() - began < 40, program.name
        if program.does == "makes":
            assert not marker.exists()
        else:
            assert marker.read_bytes() == SECRET, program.name
    farm.wait_for(farm.submit("preflight"), "succeeded")
    assert os.path.exists(f"/proc/{worker}")  # noqa: PTH110 - a process, not a file
    farm.assert_nothing_left()


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "600"], env={"SECRET": "of another"}) as process:
        yield process
        process.kill()


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0)
        yield server


def test_code_that_has_taken_over_a_jobs_process_reaches_nothing(
    farm: Farm,
    victim: subprocess.Popen[bytes],
    listener: socket.socket,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outside = farm.folder / "outside"
    for name in ("inputs", "out"):
        (outside / name).mkdir(parents=True)
    for name in ("marker", "removable", "inputs/given"):
        (outside / name).write_bytes(SECRET)
    before = sorted(outside.rglob("*"))
    hook = farm.folder / "hook"
    hook.mkdir()
    (hook / "sitecustomize.py").write_text(
        TAKE_OVER.format(
            folder=str(outside), victim=victim.pid, port=listener.getsockname()[1],
            broker=str(farm.broker.socket), database=str(farm.settings.data_dir / "tersor.db"),
            blobs=str(farm.folder / "blobs"), program=str(ROOT / "pyproject.toml"),
        )
    )  # fmt: skip
    monkeypatch.setenv("PYTHONPATH", f"{hook}:{ROOT}")
    farm.start_worker(memory_bytes=2**29)
    skip_without_walls(farm)
    path = farm.folder / "sound.pt"
    path.write_bytes(SOUND)

    job = ended(farm, submit(farm, path, kind="preflight"))

    assert job.status == "succeeded", job.error
    assert job.result is not None
    did = {name: end for name, end in job.result["did"].items() if name not in NEEDED}
    assert len(did) > 45
    assert set(did) > HARMLESS_TO_TRY
    assert [name for name, end in did.items() if end == "done"] == []
    assert victim.poll() is None
    with pytest.raises(BlockingIOError):
        listener.accept()
    assert sorted(outside.rglob("*")) == before
    assert all(each.read_bytes() == SECRET for each in before if each.is_file())
    farm.assert_nothing_left()
