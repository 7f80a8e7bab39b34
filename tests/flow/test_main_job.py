"""The main job end to end, over HTTP, on real processes, real data and a trained net."""

from __future__ import annotations

import hashlib
import io
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.compress import digits

pytestmark = pytest.mark.flow


def upload(client: httpx.Client, kind: str, content: bytes, name: str) -> dict[str, Any]:
    answer = client.post(f"/v1/{kind}", files={"file": (name, content)}, data={"name": name})
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def finish(client: httpx.Client, job: dict[str, Any], timeout_s: float = 120) -> dict[str, Any]:
    deadline = time.monotonic() + timeout_s
    while not job["finished"]:
        assert time.monotonic() < deadline, job
        job = client.get(job["urls"]["self"], headers={"Prefer": "wait=10"}).json()
    return job


def npz(**arrays: np.ndarray[Any, Any]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def script_bytes(module: torch.jit.ScriptModule) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(module, buffer)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return digits.trained()


@torch.no_grad()
def _accuracy(net: Any, images: Tensor, labels: Tensor) -> float:
    return (net(images).argmax(1) == labels).double().mean().item()


def test_a_trained_net_comes_back_as_int8_with_figures_that_hold(
    client: httpx.Client, trained: nn.Module
) -> None:
    train_x, _, test_x, test_y = digits.images()
    module = torch.jit.script(trained)  # the demo and the README's example send a traced one
    content = script_bytes(module)
    model = upload(client, "models", content, "digits.pt")
    assert model["sha256"] == hashlib.sha256(content).hexdigest()
    calibration = upload(client, "datasets", npz(input=train_x.numpy()), "train.npz")
    evaluation = upload(
        client, "datasets", npz(input=test_x.numpy(), label=test_y.numpy()), "test.npz"
    )
    answer = client.post(
        "/v1/jobs",
        json={
            "method": "ptq",
            "model_id": model["id"],
            "calibration": {"dataset_id": calibration["id"], "samples": 256},
            "evaluation": {"dataset_id": evaluation["id"], "metric": "top1"},
            "labels": {"form": "scripted"},
        },
    )
    assert answer.status_code == 202, answer.text
    job = finish(client, answer.json())
    assert job["status"] == "succeeded", job["error"]

    result = job["result"]
    artifact = result["artifacts"][0]
    float_top1 = _accuracy(trained, test_x, test_y)
    assert result["baseline"]["size_bytes"] == len(content)
    assert result["baseline"]["quality"]["value"] == pytest.approx(float_top1)
    assert result["baseline"]["quality"]["samples"] == len(test_x)

    loaded_bytes = client.get(artifact["url"]).content
    assert len(loaded_bytes) == artifact["size_bytes"]
    assert hashlib.sha256(loaded_bytes).hexdigest() == artifact["sha256"]
    assert artifact["compression_ratio"] == pytest.approx(
        len(content) / len(loaded_bytes), rel=0.01
    )
    assert artifact["compression_ratio"] >= 2.5
    int8 = torch.jit.load(io.BytesIO(loaded_bytes))
    int8_top1 = _accuracy(int8, test_x, test_y)
    assert artifact["quality"]["value"] == pytest.approx(int8_top1)
    assert artifact["quality"]["drop"] == pytest.approx(float_top1 - int8_top1, abs=1e-6)
    assert artifact["quality"]["drop"] <= 0.01
    assert int8(torch.rand(3, 1, 8, 8)).shape == (3, 10)
    assert artifact["verdict"] in ("faster", "not_faster")
    low, high = artifact["speedup"]["ci95"]
    assert low <= artifact["speedup"]["value"] <= high
    assert {layer["name"]: layer["precision"] for layer in result["layers"]} == {
        name: "int8"
        for name, part in trained.named_modules()
        if isinstance(part, nn.Conv2d | nn.Linear)
    }

    events = client.get(job["urls"]["events"]).json()["data"]
    stages = [event["message"] for event in events if event["type"] == "stage"]
    assert stages
    listed = client.get("/v1/jobs", params={"label": "form:scripted"}).json()["data"]
    assert job["id"] in [other["id"] for other in listed]


def test_a_dataset_that_does_not_fit_fails_in_the_first_seconds(
    client: httpx.Client, trained: nn.Module
) -> None:
    model = upload(
        client, "models", script_bytes(torch.jit.trace(trained, torch.rand(1, 1, 8, 8))), "m.pt"
    )
    wrong = upload(
        client, "datasets", npz(input=np.random.rand(8, 3, 8, 8).astype(np.float32)), "wrong.npz"
    )
    body = {
        "method": "ptq",
        "model_id": model["id"],
        "calibration": {"dataset_id": wrong["id"]},
    }
    began = time.monotonic()
    job = finish(client, client.post("/v1/jobs", json=body).json(), timeout_s=30)
    assert job["status"] == "failed"
    assert job["error"]["code"] == "shape_mismatch"
    assert not job["error"]["retryable"]
    assert "Traceback" not in job["error"]["message"]
    assert time.monotonic() - began < 15

    preflight = client.post("/v1/preflight", json=body)
    assert preflight.status_code == 200, preflight.text
    assert preflight.json()["ok"] is False
    assert preflight.json()["error"]["code"] == "shape_mismatch"


def test_a_preflight_tells_what_can_be_compressed(client: httpx.Client, trained: nn.Module) -> None:
    model = upload(client, "models", script_bytes(torch.jit.script(trained)), "m.pt")
    data = upload(
        client, "datasets", npz(input=np.random.rand(8, 1, 8, 8).astype(np.float32)), "d.npz"
    )
    answer = client.post(
        "/v1/preflight",
        json={
            "method": "ptq",
            "model_id": model["id"],
            "calibration": {"dataset_id": data["id"]},
        },
    )
    assert answer.status_code == 200, answer.text
    assert answer.json()["ok"] is True


def test_a_running_job_is_dead_within_five_seconds_of_its_cancel(
    client: httpx.Client, tmp_path: Path
) -> None:
    net = nn.Sequential(*[nn.Conv2d(64 if i else 3, 64, 3, padding=1) for i in range(8)])
    model = upload(
        client, "models", script_bytes(torch.jit.trace(net, torch.rand(1, 3, 96, 96))), "slow.pt"
    )
    data = upload(
        client,
        "datasets",
        npz(input=np.random.rand(512, 3, 96, 96).astype(np.float32)),
        "many.npz",
    )
    job = client.post(
        "/v1/jobs",
        json={
            "method": "ptq",
            "model_id": model["id"],
            "calibration": {"dataset_id": data["id"], "samples": 512},
        },
    ).json()
    while job["status"] == "queued":
        job = client.get(job["urls"]["self"], headers={"Prefer": "wait=5"}).json()
    assert job["status"] == "running"
    assert client.delete(f"/v1/models/{model['id']}").status_code == 409
    assert client.post(job["urls"]["cancel"]).status_code == 202
    began = time.monotonic()
    job = finish(client, job)
    assert job["status"] == "cancelled"
    assert time.monotonic() - began < 5
    assert client.post(job["urls"]["cancel"]).status_code == 409
    assert client.delete(f"/v1/models/{model['id']}").status_code == 204
