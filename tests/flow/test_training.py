"""Jobs that train, end to end over HTTP; every figure is found again from what is downloaded."""

from __future__ import annotations

import io
from typing import Any

import httpx
import pytest
import torch
from torch import nn

from tests.compress import digits
from tests.flow.test_main_job import finish, npz, script_bytes, upload

pytestmark = [pytest.mark.flow, pytest.mark.slow, pytest.mark.timeout(300)]


def small_net(classes: int = 10) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(128, classes),
    ).eval()  # fmt: skip


@pytest.fixture
def data(client: httpx.Client) -> dict[str, str]:
    train_x, train_y, test_x, test_y = digits.images()
    files = {
        "labelled": npz(input=train_x.numpy(), label=train_y.numpy()),
        "bare": npz(input=train_x.numpy()),
        "test": npz(input=test_x.numpy(), label=test_y.numpy()),
    }
    return {name: upload(client, "datasets", each, name)["id"] for name, each in files.items()}


@pytest.fixture
def teacher(client: httpx.Client) -> str:
    return str(
        upload(client, "models", script_bytes(torch.jit.script(digits.trained())), "t")["id"]
    )


def run(client: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    job = finish(client, answer.json(), timeout_s=200)
    assert job["status"] == "succeeded", job["error"]
    return job


@torch.no_grad()
def top1(net: Any) -> float:
    _, _, images, labels = digits.images()
    return (net(images).argmax(1) == labels).double().mean().item()


def download(client: httpx.Client, job: dict[str, Any], format: str = "torchscript") -> bytes:
    (artifact,) = (each for each in job["result"]["artifacts"] if each["format"] == format)
    return client.get(artifact["url"]).content


def load(content: bytes) -> torch.jit.ScriptModule:
    return torch.jit.load(io.BytesIO(content))


def events(client: httpx.Client, job: dict[str, Any], type: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    after = 0
    while True:
        page = client.get(job["urls"]["events"], params={"limit": 500, "after": after}).json()
        found += page["data"]
        if not page["has_more"]:
            return [event for event in found if event["type"] == type]
        after = page["next_after"]


def test_a_student_is_taught_and_its_figures_hold(
    client: httpx.Client, data: dict[str, str], teacher: str
) -> None:
    net = small_net()
    student = upload(client, "models", script_bytes(torch.jit.script(net)), "s")["id"]
    job = run(
        client, method="distill", model_id=teacher, training_dataset_id=data["labelled"],
        evaluation={"dataset_id": data["test"], "metric": "top1"}, formats=["torchscript", "onnx"],
        config={"student_model_id": student, "epochs": 12, "learning_rate": 0.01},
    )  # fmt: skip
    result = job["result"]
    training = result["training"]
    content = download(client, job)
    learned = load(content)

    assert training["teacher"]["value"] == pytest.approx(top1(digits.trained()))
    assert training["student_before"]["value"] == pytest.approx(top1(net))
    assert training["student_after"]["value"] == pytest.approx(top1(learned))
    assert training["student_after"]["value"] > 0.93 > training["student_before"]["value"]
    assert {each["format"]: each["quality"]["value"] for each in result["artifacts"]} == {
        format: pytest.approx(training["student_after"]["value"], abs=0.002)
        for format in ("torchscript", "onnx")
    }
    assert result["baseline"]["quality"]["value"] == pytest.approx(training["teacher"]["value"])
    parameters = sum(each.numel() for each in net.parameters())
    assert 4 * parameters < len(content) < 4 * parameters + 20_000
    assert dict(learned.named_parameters() or learned.named_buffers())
    assert learned(torch.rand(3, 1, 8, 8)).shape == (3, 10)

    assert (training["epochs"], training["resumed_from_step"]) == (12, None)
    ends = [each["data"] for each in events(client, job, "metrics") if each["data"]["is_epoch"]]
    assert [each["epoch"] for each in ends] == list(range(1, 13))
    assert [each["loss"] for each in ends] == [row["loss"] for row in training["curve"]]
    assert ends[-1]["loss"] < ends[0]["loss"]
    report = client.get(training["curve_url"]).text
    assert 'aria-label="Loss by epoch"' in report
    stages = [each["data"]["stage"] for each in events(client, job, "stage")]
    assert stages.index("lift") < stages.index("train") < stages.index("export")


def test_without_labels_a_pruned_teacher_learns_and_goes_on_to_int8(
    client: httpx.Client, data: dict[str, str], teacher: str
) -> None:
    job = run(
        client, method="distill", model_id=teacher, training_dataset_id=data["bare"],
        evaluation={"dataset_id": data["test"]},
        config={"prune": 0.5, "epochs": 15, "learning_rate": 0.01},
    )  # fmt: skip
    training = job["result"]["training"]
    content = download(client, job)
    assert training["student_after"]["value"] == pytest.approx(top1(load(content)))
    assert training["student_after"]["value"] > training["teacher"]["value"] - 0.03
    (artifact,) = job["result"]["artifacts"]
    assert artifact["compression_ratio"] > 2

    answer = client.post("/v1/models", json={"artifact_id": artifact["id"], "name": "pruned"})
    assert answer.status_code == 201, answer.text
    int8 = run(
        client, method="ptq", model_id=answer.json()["id"],
        calibration={"dataset_id": data["bare"]},
        evaluation={"dataset_id": data["test"]},
    )  # fmt: skip
    quality = int8["result"]["artifacts"][0]["quality"]
    assert quality["value"] == pytest.approx(top1(load(download(client, int8))))
    assert quality["drop"] < 0.02


def test_a_quantized_model_learns_without_labels_and_the_file_computes_what_was_trained(
    client: httpx.Client, data: dict[str, str], teacher: str
) -> None:
    job = run(
        client, method="qat", model_id=teacher, training_dataset_id=data["bare"],
        evaluation={"dataset_id": data["test"]}, formats=["torchscript", "onnx"],
        config={"epochs": 8, "granularity": "per_tensor", "weight_dtype": "int4"},
    )  # fmt: skip
    result = job["result"]
    training = result["training"]
    found = top1(load(download(client, job)))
    torchscript, onnx = sorted(
        result["artifacts"], key=lambda each: each["format"] != "torchscript"
    )
    assert torchscript["quality"]["value"] == pytest.approx(found)
    assert training["student_after"]["value"] == pytest.approx(found, abs=0.002)
    assert onnx["quality"]["value"] == pytest.approx(found, abs=0.01)
    assert training["student_before"]["value"] > 0.9
    judged = [row["validation_loss"] for row in training["curve"]]
    assert training["final"]["validation_loss"] <= min(judged)
    assert torchscript["quality"]["drop"] < 0.03
    assert training["teacher"]["value"] == pytest.approx(top1(digits.trained()))
    assert len(training["curve"]) == 8


def test_what_does_not_fit_is_told_before_anything_is_trained(
    client: httpx.Client, data: dict[str, str], teacher: str
) -> None:
    seven = upload(client, "models", script_bytes(torch.jit.script(small_net(7))), "s7")["id"]
    body: dict[str, Any] = {
        "method": "distill", "model_id": teacher, "training_dataset_id": data["labelled"],
        "config": {"student_model_id": seven},
    }  # fmt: skip
    preflight = client.post("/v1/preflight", json=body)
    assert preflight.status_code == 200, preflight.text
    assert preflight.json()["ok"] is False
    message = preflight.json()["error"]["message"]
    assert "7]" in message
    assert "10]" in message
    failed = finish(client, client.post("/v1/jobs", json=body).json(), timeout_s=60)
    assert failed["error"]["code"] == preflight.json()["error"]["code"]
    assert not events(client, failed, "metrics")

    for method, config in (("distill", {"prune": 0.5}), ("qat", {})):
        fine = client.post("/v1/preflight", json=body | {"method": method, "config": config}).json()
        assert fine["ok"] is True, fine
        assert fine["result"]["estimated_size_bytes"] < 0.7 * fine["result"]["size_bytes"]


def test_labels_out_of_range_are_told_with_their_sample(client: httpx.Client, teacher: str) -> None:
    images, labels, _, _ = digits.images()
    wrong = labels.numpy().copy()
    wrong[77] = 10
    dataset = upload(client, "datasets", npz(input=images.numpy(), label=wrong), "wrong")["id"]
    body = {
        "method": "distill", "model_id": teacher, "training_dataset_id": dataset,
        "config": {"prune": 0.5},
    }  # fmt: skip
    failed = finish(client, client.post("/v1/jobs", json=body).json(), timeout_s=60)
    assert failed["error"]["code"] == "label_mismatch"
    assert "77" in failed["error"]["message"]


def test_a_loss_that_is_no_number_ends_the_job(
    client: httpx.Client, data: dict[str, str], teacher: str
) -> None:
    body = {
        "method": "distill", "model_id": teacher, "training_dataset_id": data["labelled"],
        "config": {"prune": 0.5, "optimizer": "sgd", "learning_rate": 1e6, "loss": "mse"},
    }  # fmt: skip
    failed = finish(client, client.post("/v1/jobs", json=body).json(), timeout_s=120)
    assert failed["error"]["code"] == "training_diverged", failed["error"]
    assert "step" in failed["error"]["message"]
    warnings = [each for each in events(client, failed, "log") if each["level"] == "warning"]
    assert any("learning_rate" in each["message"] for each in warnings)
