"""A training that is killed goes on from its checkpoint, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from app.jobs.tables import Artifact, Job
from tests.compress import digits
from tests.faults.broker import wait_until
from tests.faults.conftest import Farm
from tests.workers.rows import add_dataset, add_job, add_model, events_of

pytestmark = pytest.mark.slow

EPOCHS = 20
TIMES = ("images_per_s", "seconds")


@pytest.fixture(scope="session")
def training_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A trained net and an untrained smaller one, with a BatchNorm and dropout; the digits."""
    folder = tmp_path_factory.mktemp("training")
    train_x, train_y, test_x, test_y = digits.images()
    torch.manual_seed(1)
    student = nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Dropout(0.1),
        nn.Linear(72, 10),
    )  # fmt: skip
    for name, net in (("teacher", digits.trained()), ("student", student.eval())):
        torch.jit.save(torch.jit.script(net), str(folder / f"{name}.pt"))
    np.savez(folder / "train.npz", input=train_x.numpy(), label=train_y.numpy())
    np.savez(folder / "test.npz", input=test_x.numpy(), label=test_y.numpy())
    return {path.stem: path for path in folder.iterdir()}


Submit = Callable[..., str]


@pytest.fixture
def submit(farm: Farm, training_files: dict[str, Path]) -> Submit:
    """Return a function that adds a job which trains, and sends its message."""
    ids = {
        name: add_model(farm.database, farm.store, path)
        if path.suffix == ".pt"
        else add_dataset(farm.database, farm.store, path, 1)
        for name, path in training_files.items()
    }

    def add(method: str = "distill", **config: Any) -> str:
        learned = {"student_model_id": ids["student"]} if method == "distill" else {}
        config = {"batch_size": 32, "checkpoint_every_s": 0.05, **learned, **config}
        spec = {
            "method": method, "formats": ["torchscript"], "backend": "x86", "device": "cpu",
            "seed": 3, "config": config,
        }  # fmt: skip
        return add_job(
            farm.database, method=method, model_id=ids["teacher"], message=True, spec=spec,
            student_model_id=learned.get("student_model_id"),
            datasets={"training": ids["train"], "evaluation": ids["test"]},
        )  # fmt: skip

    return add


def wait_for_epoch(farm: Farm, job_id: str, attempt: int, epoch: int) -> int:
    """Wait until an attempt has told of an epoch in the midst of it; return the process's pid."""

    def is_there() -> bool:
        job = farm.job(job_id)
        assert not job.finished_at, (job.status, job.error)
        # its own events: they come after the one that says it began
        began = [
            event.id for event in events_of(farm.database, job_id)
            if event.type == "status" and (event.data or {}).get("attempt") == attempt
        ]  # fmt: skip
        return bool(began) and any(
            event.id > began[0] and event.type == "metrics" and event.data["epoch"] >= epoch
            for event in events_of(farm.database, job_id)
            if event.data
        )

    wait_until(is_there, 60, f"attempt {attempt} is in epoch {epoch}")
    return wait_until(farm.children, 5, "a child")[0]


def newest_step(farm: Farm, job_id: str) -> int:
    """Return how far the checkpoint is; to a slow disk few are written."""
    (file,) = (farm.settings.data_dir / "checkpoints" / job_id).rglob("*.checkpoint")
    step = int(torch.load(file, weights_only=True)["state"]["step"])
    assert step > 0
    return step


def figures(job: Job) -> dict[str, Any]:
    """Return all that must not hang on how often the job was killed."""
    assert job.result is not None
    training = job.result["training"]
    curve = [
        {name: value for name, value in row.items() if name not in TIMES}
        for row in training["curve"]
    ]
    (artifact,) = job.result["artifacts"]
    return {
        "curve": curve,
        "final": {k: v for k, v in training["final"].items() if k not in TIMES},
        "epochs": training["epochs"], "steps": training["steps"],
        "before": training.get("student_before"), "after": training.get("student_after"),
        "quality": artifact["quality"], "fidelity": artifact["fidelity"],
    }  # fmt: skip


def answers(farm: Farm, job_id: str) -> torch.Tensor:
    """Return what the finished file answers to the test images."""
    with farm.database.read() as session:
        row = session.query(Artifact).filter_by(job_id=job_id, kind="model").one()
    module = torch.jit.load(str(farm.folder / "blobs" / row.storage_key))
    answered: torch.Tensor = module(digits.images()[2])
    return answered


@pytest.mark.timeout(400)
@pytest.mark.parametrize("method", ["distill", "qat"])
def test_a_training_killed_twice_ends_with_the_figures_of_an_undisturbed_one(
    farm: Farm, submit: Submit, method: str
) -> None:
    config: dict[str, Any] = {"epochs": EPOCHS, "warmup_steps": 20}
    if method == "distill":
        config |= {"finetune_epochs": 3, "augment": ["noise"]}
    worker = farm.start_worker(lease_s=600)
    undisturbed = submit(method, **config)
    farm.wait_for(undisturbed, "succeeded", timeout_s=120)
    farm.assert_ended_once(undisturbed, "succeeded", attempts=1)
    assert farm.job(undisturbed).result["training"]["resumed_from_step"] is None  # type: ignore[index]

    job_id = submit(method, **config)
    kept = farm.settings.data_dir / "checkpoints" / job_id
    child = wait_for_epoch(farm, job_id, attempt=1, epoch=3)
    assert list(kept.rglob("*.checkpoint"))
    os.kill(child, signal.SIGKILL)
    wait_for_epoch(farm, job_id, attempt=2, epoch=8)
    farm.stop_worker(worker, signal.SIGKILL)
    wait_until(lambda: not farm.children(), 5, "the child is gone with its worker")
    newest = newest_step(farm, job_id)
    farm.start_worker(lease_s=600)
    job = farm.wait_for(job_id, "succeeded", timeout_s=120)
    farm.assert_ended_once(job_id, "succeeded", attempts=3)

    assert job.result is not None
    assert job.result["training"]["resumed_from_step"] == newest
    assert figures(job) == figures(farm.job(undisturbed))
    assert torch.equal(answers(farm, job_id), answers(farm, undisturbed))
    farm.assert_nothing_left()


@pytest.mark.timeout(120)
def test_a_training_is_cancelled_within_five_seconds_in_the_midst_of_an_epoch(
    farm: Farm, submit: Submit
) -> None:
    farm.start_worker()
    job_id = submit(steps=10_000_000, batch_size=1, checkpoint_every_s=0.5)
    wait_until(lambda: farm.job(job_id).stage == "train", 60, "it trains")
    kept = farm.settings.data_dir / "checkpoints" / job_id
    wait_until(lambda: list(kept.rglob("*.checkpoint")), 20, "a checkpoint")
    assert not [event for event in events_of(farm.database, job_id) if ends_epoch(event.data)]
    farm.request_cancel(job_id)
    wait_until(lambda: farm.job(job_id).status == "cancelled", 5, "the end")
    farm.assert_ended_once(job_id, "cancelled", attempts=1)
    wait_until(lambda: not kept.exists(), 2, "its checkpoints are gone")
    farm.assert_nothing_left()


@pytest.mark.timeout(120)
def test_a_stopped_worker_gives_a_training_back_and_another_goes_on(
    farm: Farm, submit: Submit
) -> None:
    worker = farm.start_worker()
    job_id = submit(epochs=EPOCHS)
    wait_for_epoch(farm, job_id, attempt=1, epoch=3)
    assert farm.stop_worker(worker) < 5
    assert farm.job(job_id).status == "queued"
    newest = newest_step(farm, job_id)
    farm.start_worker()
    job = farm.wait_for(job_id, "succeeded", timeout_s=60)
    assert job.result is not None
    assert job.result["training"]["resumed_from_step"] == newest
    farm.assert_ended_once(job_id, "succeeded", attempts=1)
    farm.assert_nothing_left()


@pytest.mark.timeout(120)
def test_a_checkpoint_that_cannot_be_read_costs_time_and_nothing_else(
    farm: Farm, submit: Submit
) -> None:
    worker = farm.start_worker(lease_s=600)
    job_id = submit(epochs=EPOCHS)
    wait_for_epoch(farm, job_id, attempt=1, epoch=3)
    farm.stop_worker(worker, signal.SIGKILL)
    for path in (farm.settings.data_dir / "checkpoints" / job_id).rglob("*.checkpoint"):
        path.write_bytes(path.read_bytes()[:1000])
    farm.start_worker()
    job = farm.wait_for(job_id, "succeeded", timeout_s=60)
    assert job.result is not None
    assert job.result["training"]["resumed_from_step"] is None
    warnings = [e.message for e in events_of(farm.database, job_id) if e.level == "warning"]
    assert any("checkpoint cannot be used" in message for message in warnings)
    farm.assert_nothing_left()


@pytest.fixture
def small_disk(farm: Farm) -> Iterator[Path]:
    folder = farm.settings.data_dir / "checkpoints"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(folder)],
        capture_output=True, check=False,
    )  # fmt: skip
    if done.returncode != 0:
        pytest.skip("may not mount a tmpfs here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.timeout(120)
def test_no_room_for_a_checkpoint_fails_the_job_and_leaves_the_worker_alive(
    farm: Farm, submit: Submit, small_disk: Path
) -> None:
    farm.start_worker()
    job_id = submit(epochs=EPOCHS)
    job = farm.wait_for(job_id, "failed")
    assert job.error is not None
    assert (job.error["code"], job.error["stage"]) == ("storage_full", "train")
    assert job.error["retryable"]
    farm.wait_for(farm.submit("preflight"), "succeeded")
    farm.assert_nothing_left()


def ends_epoch(data: dict[str, Any] | None) -> bool:
    return bool(data and data.get("is_epoch"))
