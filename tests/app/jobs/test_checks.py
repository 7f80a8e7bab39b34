"""What a submit finds out from rows alone: arrays against arguments, labels, devices."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from redis import Redis
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import Job, WorkerSeen
from app.state import Services
from tests.app import samples
from tests.app.samples import upload


def refused(client: TestClient, **fields: Any) -> tuple[str, str]:
    answer = client.post("/v1/jobs", json=fields)
    assert answer.status_code == 422, answer.text
    problem = answer.json()
    return problem["code"], problem["errors"][0]["pointer"]


def test_ptq_needs_calibration_data(client: TestClient, model: dict[str, Any]) -> None:
    found = refused(client, method="ptq", model_id=model["id"])
    assert found == ("inputs_unknown", "/calibration")


def test_convert_needs_data_or_declared_inputs(
    client: TestClient, model: dict[str, Any], data: dict[str, Any]
) -> None:
    assert refused(client, method="convert", model_id=model["id"])[0] == "inputs_unknown"
    declared = upload(
        client, "models", samples.traced_cnn(),
        inputs='[{"name": "image", "shape": ["batch", 1, 8, 8]}]',
    )  # fmt: skip
    fields = {"method": "convert", "model_id": declared["id"]}
    assert client.post("/v1/jobs", json=fields).status_code == 202
    fields = {
        "method": "convert",
        "model_id": model["id"],
        "evaluation": {"dataset_id": data["id"]},
    }
    assert client.post("/v1/jobs", json=fields).status_code == 202


def test_a_metric_that_needs_labels(client: TestClient, model: dict[str, Any]) -> None:
    bare = upload(client, "datasets", samples.npz(input=samples.images()))["id"]
    fields = {
        "method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": bare},
        "evaluation": {"dataset_id": bare, "metric": "top1"},
    }  # fmt: skip
    assert refused(client, **fields) == ("label_mismatch", "/evaluation/metric")
    for metric in (None, "agreement"):
        fields["evaluation"] = {"dataset_id": bare, "metric": metric}
        assert client.post("/v1/jobs", json=fields).status_code == 202


def test_arrays_must_be_as_many_as_forward_takes(client: TestClient) -> None:
    rows = samples.images()[:, 0, 0, :4]
    one = upload(client, "models", samples.traced_cnn())["id"]
    two = upload(client, "models", samples.two_inputs())["id"]
    single = upload(client, "datasets", samples.npz(input=rows))["id"]
    double = upload(client, "datasets", samples.npz(input_0=rows, input_1=rows))["id"]
    triple = upload(client, "datasets", samples.npz(input_0=rows, input_1=rows, input_2=rows))["id"]
    for model_id, dataset_id, code in (
        (one, single, None), (one, double, "shape_mismatch"),
        (two, single, None), (two, double, None), (two, triple, "shape_mismatch"),
    ):  # fmt: skip
        fields = {
            "method": "ptq", "model_id": model_id, "calibration": {"dataset_id": dataset_id}
        }  # fmt: skip
        if code is None:
            assert client.post("/v1/jobs", json=fields).status_code == 202
        else:
            assert refused(client, **fields) == (code, "/calibration/dataset_id")


def test_declared_shapes_bind_the_data(client: TestClient, data: dict[str, Any]) -> None:
    for shape, status in (
        ('["batch", 1, 8, 8]', 202), ('[1, 1, 8, 8]', 202), ('["n", 1, "h", "w"]', 202),
        ('["batch", 3, 8, 8]', 422), ('["batch", 64]', 422),
    ):  # fmt: skip
        inputs = f'[{{"name": "image", "shape": {shape}}}]'
        model = upload(client, "models", samples.traced_cnn(), inputs=inputs)
        fields = {
            "method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}
        }  # fmt: skip
        answer = client.post("/v1/jobs", json=fields)
        assert answer.status_code == status
        if status == 422:
            assert answer.json()["code"] == "shape_mismatch"


ROWS = np.ones((6, 4), np.float32)
STRUCTURED = {
    "input_0.ids": ROWS, "input_0.inner.sizes.0": ROWS, "input_0.inner.sizes.1": np.full(6, 3),
    "input_1.x": ROWS,
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "told"),
    [
        ({}, None),
        ({"input_0.mask": ROWS, "input_1.y": ROWS}, None),
        ({"input_3": np.full(6, 0.5)}, None),
        ({"input_2": ROWS, "input_3": np.full(6, 2)}, None),
        ({"input_1.x": None}, "argument 'more' takes input_1.KEY"),
        ({"input_0.ids": None}, "it takes input_0.ids, input_0.inner.sizes.0"),
        ({"input_0.inner.sizes.1": None}, "takes input_0.inner.sizes.0 and input_0.inner.sizes.1"),
        ({"input_0.other": ROWS}, "input_0.other"),
        ({"input_1.x": None, "input_1": ROWS}, "takes input_1.KEY, but input_1 is given"),
        ({"input_2.0": ROWS}, "takes input_2, but input_2.0 is given"),
        ({"input_0.inner.sizes.1": np.full(6, 0.5)}, "a Python int from input_0.inner.sizes.1"),
        ({"input_3": np.full((6, 1), 0.5)}, "a Python float from input_3"),
        ({"input_4": ROWS}, "no argument for input_4"),
    ],
)  # fmt: skip
def test_each_part_of_an_argument_is_an_array(
    client: TestClient, arrays: dict[str, Any], told: str | None
) -> None:
    model = upload(client, "models", samples.structured())["id"]
    given = {name: array for name, array in (STRUCTURED | arrays).items() if array is not None}
    dataset = upload(client, "datasets", samples.npz(**given))["id"]
    fields = {"method": "ptq", "model_id": model, "calibration": {"dataset_id": dataset}}
    answer = client.post("/v1/jobs", json=fields)
    if told is None:
        assert answer.status_code == 202, answer.text
        return
    problem = answer.json()
    assert told in problem["detail"]
    assert problem["code"] == "shape_mismatch"
    assert problem["errors"][0]["pointer"] == "/calibration/dataset_id"


def test_declared_shapes_of_parts_bind_the_data(client: TestClient) -> None:
    dataset = upload(client, "datasets", samples.npz(**STRUCTURED))["id"]
    for width, status in (("4", 202), ('"n"', 202), ("5", 422)):
        inputs = (
            f'[{{"name": "batch.ids", "shape": ["batch", {width}]}}, '
            '{"name": "batch.inner.sizes.0", "shape": ["batch", 4]}, '
            '{"name": "batch.inner.sizes.1", "dtype": "int64", "value": 3}, '
            '{"name": "more.x", "shape": ["batch", 4]}]'
        )
        model = upload(client, "models", samples.structured(), inputs=inputs)["id"]
        fields = {"method": "ptq", "model_id": model, "calibration": {"dataset_id": dataset}}
        answer = client.post("/v1/jobs", json=fields)
        assert answer.status_code == status
        assert status == 202 or "input_0.ids has the shape [6, 4]" in answer.json()["detail"]


def test_forward_must_take_what_arrays_can_be(client: TestClient, data: dict[str, Any]) -> None:
    model = upload(client, "models", samples.text_input())
    fields = {"method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}}
    assert refused(client, **fields) == ("bad_signature", "/model_id")


@pytest.mark.parametrize("field", ["device", "backend"])
def test_cuda_needs_a_live_worker_that_has_it(
    client: TestClient, body: dict[str, Any], services: Services, broker: Redis, field: str
) -> None:
    fields = {**body, "method": "convert", "config": {"precision": "bf16"}, field: "cuda"}
    assert refused(client, **fields) == ("device_unavailable", f"/{field}")
    with services.database.write() as session:
        session.add(
            WorkerSeen(
                id="w", queues=["gpu"], slots=1, info={"devices": ["cpu", "cuda"]},
                started_at=utc_now(), seen_at=utc_now(),
            )
        )  # fmt: skip
    job = client.post("/v1/jobs", json=fields).json()
    with services.database.read() as session:
        stored = session.get(Job, job["id"])
        assert stored is not None
        assert stored.queue == "gpu"


def test_a_job_for_a_gpu_that_contradicts_itself_is_refused(
    client: TestClient, body: dict[str, Any]
) -> None:
    for_gpu = {**body, "backend": "cuda"}
    converts = {**for_gpu, "method": "convert", "config": {}}
    assert refused(client, **for_gpu) == ("invalid_request", "/config")
    assert refused(client, **for_gpu, config={"mode": "weight_only"}) == (
        "invalid_request", "/config",
    )  # fmt: skip
    assert refused(client, **converts, formats=["onnx"]) == ("invalid_request", "/formats")
    assert refused(client, **converts, device="cpu") == ("invalid_request", "/device")
