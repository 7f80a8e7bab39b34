"""Jobs that train, from the command and the client: what is sent, and what is shown meanwhile."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tersor import Client, Job
from tersor.cli.training import TrainingLine, is_between_epochs, sparkline
from tersor.views import Event
from tests.app import samples
from tests.tersor.conftest import Command, Server
from tests.tersor.test_command import process


@pytest.fixture
def student_file(tmp_path: Path) -> Path:
    path = tmp_path / "student.pt"
    path.write_bytes(samples.traced_cnn())
    return path


@pytest.fixture
def job(client: Client, model_file: Path, student_file: Path, dataset_file: Path) -> Job:
    teacher = client.models.upload(model_file)
    data = client.datasets.upload(dataset_file)
    return client.jobs.submit(
        "distill", teacher, training=data, student=client.models.upload(student_file),
        config={"batch_size": 4},
    )  # fmt: skip


def figures(epoch: int, loss: float, **more: Any) -> dict[str, Any]:
    return {
        "phase": "distill", "epoch": epoch, "epochs": 10, "step": 12 * epoch, "steps": 120,
        "loss": loss, "parts": {}, "learning_rate": 1e-3, "accuracy": 0.912,
        "images_per_s": 812.4, "eta_s": 39.6, "is_epoch": True,
    } | more  # fmt: skip


def event(data: dict[str, Any] | None, type: str = "metrics") -> Event:
    return Event(id=1, type=type, data=data)


def test_the_command_uploads_teacher_student_and_data(
    tersor: Command, model_file: Path, student_file: Path, dataset_file: Path
) -> None:
    spec = tersor.json(
        "submit", "distill", "--model", model_file, "--student", student_file,
        "--training", dataset_file, "--evaluation", dataset_file, "--set", "batch_size=4",
        "--set", "epochs=3", "--set", 'augment=["flip"]',
    )["spec"]  # fmt: skip
    assert spec["training_dataset_id"] == spec["evaluation"]["dataset_id"]
    config = spec["config"]
    assert (config["epochs"], config["batch_size"], config["augment"]) == (3, 4, ["flip"])
    assert config["student_model_id"] != spec["model_id"]
    qat = tersor.json(
        "submit", "qat", "--model", spec["model_id"], "--training", spec["training_dataset_id"],
        "--set", "batch_size=4", "--override", "0=fp32",
    )["spec"]  # fmt: skip
    assert (qat["method"], qat["config"]["overrides"]) == ("qat", {"0": "fp32"})
    lost = tersor(
        "preflight", "distill", "--model", spec["model_id"], "--student", "mdl_" + "0" * 26,
        "--training", spec["training_dataset_id"], "--set", "batch_size=4", status=3,
    )  # fmt: skip
    assert lost.stderr.startswith("model_not_found: ")


def test_the_client_puts_each_id_where_it_belongs(job: Job, client: Client) -> None:
    assert job.spec["config"]["student_model_id"].startswith("mdl_")
    again = client.jobs.submit(
        "distill", job.spec["model_id"], training=job.spec["training_dataset_id"],
        config={"prune": 0.5, "batch_size": 4},
    )  # fmt: skip
    assert again.spec["config"]["student_model_id"] is None
    assert again.spec["training_dataset_id"] == job.spec["training_dataset_id"]
    found = client.preflight(
        "qat", job.spec["model_id"], training=job.spec["training_dataset_id"], timeout_s=0,
        config={"batch_size": 4},
    )  # fmt: skip
    assert found.status == "queued"


@pytest.mark.slow
def test_on_a_terminal_the_figures_of_a_training_stand_below_the_bar(
    server: Server, job: Job, tmp_path: Path
) -> None:
    server.change(job.id, status="running", stage="train", progress=0.3, message="epoch 3/10")
    for epoch, loss in ((1, 2.0), (2, 1.0), (3, 0.5)):
        server.tell(job.id, "metrics", f"epoch {epoch}", figures(epoch, loss))
    leader, follower = pty.openpty()
    watching = process(
        server, "watch", job.id, stdout=follower, stderr=follower, stdin=subprocess.DEVNULL
    )
    os.close(follower)
    shown = b""
    ended = False
    while True:
        try:
            shown += os.read(leader, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if b"epoch 3/10" in shown and not ended:
            server.run_job(job.id, {"m.fp32.pt": b"x"}, tmp_path)
            ended = True
    os.close(leader)
    assert watching.wait(20) == 0
    text = shown.decode()
    assert "epoch 3/10  loss 0.5 █▃▁  accuracy 91.20%  812 images/s  40 s left" in text
    assert "info: epoch" not in text


def test_elsewhere_each_epoch_is_a_line_and_nothing_in_between_is(
    tersor: Command, server: Server, job: Job, tmp_path: Path
) -> None:
    server.tell(job.id, "metrics", "half of epoch 1", figures(1, 2.0, is_epoch=False))
    server.tell(job.id, "metrics", "all of epoch 1", figures(1, 1.5))
    result = server.run_job(job.id, {"m.fp32.pt": b"x"}, tmp_path)
    quality = {"metric": "top1", "value": 0.9, "samples": 12, "drop": None}
    training = {
        "teacher": quality | {"value": 0.95},
        "student_before": quality | {"value": 0.1},
        "student_after": quality,
    }
    server.change(job.id, result=result | {"training": training})
    done = tersor("watch", job.id)
    assert "all of epoch 1" in done.stderr
    assert "half of epoch 1" not in done.stderr
    assert "trained, top1: teacher 0.9500, before 0.1000, after 0.9000" in done.stdout


def test_a_sparkline_goes_from_the_highest_to_the_lowest_value() -> None:
    assert sparkline([]) == ""
    assert sparkline([3.0]) == "▁"
    assert sparkline([2.0, 2.0]) == "▁▁"
    assert sparkline([7, 6, 5, 4, 3, 2, 1, 0]) == "█▇▆▅▄▃▂▁"
    assert sparkline([8.0, 6.0, 0.0, 0.0], width=2) == "█▁"
    assert len(sparkline(list(range(1000)))) == 24


def test_a_line_takes_what_is_there_and_begins_anew_with_a_phase() -> None:
    line = TrainingLine()
    assert not line.take(event(None))
    assert not line.take(event({"loss": 1.0}, type="log"))
    assert not line.take(event({"loss": "much"}))
    assert line.text == ""
    assert line.take(event(figures(1, 4.0)))
    assert line.take(event(figures(2, 1.0, accuracy=None, eta_s=None)))
    assert line.text == "epoch 2/10  loss 1 █▁  812 images/s"
    assert line.take(event(figures(1, 9.0, phase="finetune", images_per_s=None)))
    assert line.text == "epoch 1/10  loss 9 ▁  accuracy 91.20%  40 s left"
    assert line.take(event({"loss": 2}))
    assert not is_between_epochs(event({"loss": 1.0}))
    assert is_between_epochs(event({"loss": 1.0, "is_epoch": False}))
