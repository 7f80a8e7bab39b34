"""Numbers in bodies are numbers: what merely looks like one is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from tests.app import samples
from tests.app.samples import upload

SOMEBODY = "mdl_" + "0" * 26
DATASET = {"dataset_id": "dst_" + "0" * 26}


@pytest.mark.parametrize("lookalike", ["5", True, 5.0, "five"])
@pytest.mark.parametrize(
    ("fields", "pointer"),
    [
        ({"seed": ...}, "/seed"),
        ({"priority": ...}, "/priority"),
        ({"timeout_s": ...}, "/timeout_s"),
        ({"calibration": {**DATASET, "samples": ...}}, "/calibration/samples"),
        ({"calibration": {**DATASET, "batch_size": ...}}, "/calibration/batch_size"),
    ],
)
def test_an_integer_of_a_job_is_one(
    client: TestClient, fields: dict[str, Any], pointer: str, lookalike: Any
) -> None:
    text = json.dumps(fields, default=lambda _: lookalike)
    body = {"method": "ptq", "model_id": SOMEBODY, **json.loads(text)}
    answer = client.post("/v1/jobs", json=body)
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["errors"] == [
        {"pointer": pointer, "detail": "Input should be a valid integer."}
    ]


def test_an_integer_will_do_where_a_fraction_is_meant(client: TestClient) -> None:
    body = {"method": "ptq", "model_id": SOMEBODY, "max_accuracy_drop": 1}
    assert client.post("/v1/jobs", json=body).json()["code"] == "model_not_found"
    for lookalike in ("0.5", True):
        answer = client.post("/v1/jobs", json={**body, "max_accuracy_drop": lookalike})
        assert answer.json()["errors"][0]["pointer"] == "/max_accuracy_drop"


@pytest.mark.parametrize(
    ("field", "pointer"),
    [
        ({"shape": [True, 1, 8, 8]}, "/inputs/0/shape/0"),
        ({"shape": [1, 1.0, 8, 8]}, "/inputs/0/shape/1"),
        ({"value": "5"}, "/inputs/0/value"),
    ],
)
def test_declared_inputs_hold_numbers(
    client: TestClient, field: dict[str, Any], pointer: str
) -> None:
    declared = [{"name": "image", **field}]
    answers = (
        client.post(
            "/v1/models",
            files={"file": samples.traced_cnn()},
            data={"name": "x", "inputs": json.dumps(declared)},
        ),
        client.post(
            "/v1/models", json={"artifact_id": "art_" + "0" * 26, "name": "x", "inputs": declared}
        ),
    )
    for answer in answers:
        assert answer.status_code == 422
        assert answer.json()["code"] == "invalid_request"
        assert answer.json()["errors"][0]["pointer"] == pointer


def test_declared_inputs_that_fit_arrive_as_they_were(client: TestClient) -> None:
    declared = [{"name": "image", "dtype": "float32", "shape": ["batch", 1, 8, 8]}]
    model = upload(client, "models", samples.traced_cnn(), inputs=json.dumps(declared))
    assert model["inputs"] == [{**declared[0], "value": None}]
