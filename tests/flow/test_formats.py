"""Every format and mixed precision through the service, each file run outside of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from compress.export import open_artifact
from tests.compress import digits
from tests.compress.mixed.breakable import breakable
from tests.flow.test_main_job import finish, npz, script_bytes, upload

pytestmark = pytest.mark.flow


@pytest.fixture
def resources(client: httpx.Client) -> dict[str, str]:
    images, _, held, labels = digits.images()
    model = script_bytes(torch.jit.trace(breakable(), images[:1]))
    evaluation = npz(input=held.numpy(), label=labels.numpy())
    return {
        "model": upload(client, "models", model, "breakable.pt")["id"],
        "calibration": upload(client, "datasets", npz(input=images.numpy()), "train.npz")["id"],
        "evaluation": upload(client, "datasets", evaluation, "test.npz")["id"],
    }


def submit(client: httpx.Client, resources: dict[str, str], **fields: Any) -> dict[str, Any]:
    body = {
        "model_id": resources["model"],
        "calibration": {"dataset_id": resources["calibration"]},
        "evaluation": {"dataset_id": resources["evaluation"]},
        **fields,
    }
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 202, answer.text
    return finish(client, answer.json(), timeout_s=240)


def top1(answers: Tensor) -> float:
    _, _, _, labels = digits.images()
    return float((answers.argmax(1) == labels).float().mean())


def test_a_net_that_int8_breaks_comes_back_right(
    client: httpx.Client, resources: dict[str, str], tmp_path: Path
) -> None:
    job = submit(
        client, resources, method="mixed", config={"max_accuracy_drop": 0.01},
        formats=["torchscript", "onnx"],
    )  # fmt: skip
    assert job["status"] == "succeeded", job["error"]
    result = job["result"]
    assert result["undelivered"] == []
    _, _, held, _ = digits.images()
    for artifact in result["artifacts"]:
        path = tmp_path / artifact["name"]
        path.write_bytes(client.get(artifact["url"]).content)
        assert path.stat().st_size == artifact["size_bytes"]
        run = open_artifact(path, artifact["format"], 1)
        assert artifact["quality"]["value"] == pytest.approx(top1(run(held)))
        assert artifact["quality"]["drop"] <= 0.01
        assert artifact["peak_memory_bytes"] > 0
        assert artifact["throughput"][0]["batch_size"] == 1
        assert artifact["verdict"] in ("faster", "not_faster")
    plain = onnxruntime.InferenceSession(str(tmp_path / "model.mixed.onnx"))
    (name,) = [each.name for each in plain.get_inputs()]
    assert top1(torch.from_numpy(plain.run(None, {name: held.numpy()})[0])) > 0.95
    plan = result["mixed"]["plan"]
    assert {layer for layer, precision in plan.items() if precision != "int8"} >= {"narrow"}
    assert result["artifacts"][0]["size_bytes"] < result["baseline"]["size_bytes"] / 2

    files = client.get(job["urls"]["artifacts"]).json()["data"]
    (report,) = [each for each in files if each["name"] == "report.html"]
    page = client.get(report["url"]).content.decode()
    assert "narrow" in page
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_a_bound_that_nothing_keeps_fails_with_the_best_found(
    client: httpx.Client, resources: dict[str, str]
) -> None:
    job = submit(
        client, resources, method="mixed",
        config={"target_size_bytes": 5000, "candidates": ["int8", "fp32"]},
    )  # fmt: skip
    assert job["status"] == "failed"
    assert job["error"]["code"] == "constraint_unmet"
    best = job["error"]["details"]["best"]
    assert best["size_bytes"] > 5000
    assert str(best["size_bytes"]) in job["error"]["message"]


def test_dynamic_needs_no_calibration(
    client: httpx.Client, resources: dict[str, str], tmp_path: Path
) -> None:
    job = submit(
        client, resources, method="ptq", config={"mode": "dynamic"}, calibration=None,
        formats=["openvino", "pt2"],
    )  # fmt: skip
    assert job["status"] == "succeeded", job["error"]
    artifacts = job["result"]["artifacts"]
    assert [each["format"] for each in artifacts] == ["openvino", "pt2"]
    _, _, held, _ = digits.images()
    for artifact in artifacts:
        path = tmp_path / artifact["name"]
        path.write_bytes(client.get(artifact["url"]).content)
        run = open_artifact(path, artifact["format"], 1)
        # in the batches that were judged: dynamic scales are those of a batch
        answers = torch.cat([run(part) for part in held.split(32)])
        assert artifact["quality"]["value"] == pytest.approx(top1(answers))


def test_overflow_in_calibration_data_is_named(
    client: httpx.Client, resources: dict[str, str]
) -> None:
    images = digits.images()[0].numpy().copy()
    images[3, 0, 0, 0] = np.nan
    bad = upload(client, "datasets", npz(input=images), "bad.npz")
    job = submit(client, resources, method="ptq", calibration={"dataset_id": bad["id"]})
    assert job["error"]["code"] == "bad_calibration_data"
    assert "sample 3" in job["error"]["message"]
