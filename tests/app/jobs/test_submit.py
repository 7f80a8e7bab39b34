"""What a submit answers, sends and refuses."""

from __future__ import annotations

import base64
import json
import time
from typing import Any

import pytest
from redis import Redis
from starlette.testclient import TestClient

from app.queue import RUN_JOB
from tests.databases import both_databases

NOBODY = "dst_" + "0" * 26


@both_databases
def test_a_submitted_job_is_shown_with_all_defaults(
    client: TestClient, body: dict[str, Any]
) -> None:
    answer = client.post("/v1/jobs", json={**body, "labels": {"run": "42"}})
    assert answer.status_code == 202
    job = answer.json()
    assert answer.headers["location"] == job["urls"]["self"] == f"/v1/jobs/{job['id']}"
    assert {name: job[name] for name in (
        "method", "status", "finished", "stage", "progress", "attempt", "queue_position",
        "cancel_requested_at", "started_at", "finished_at", "error", "result",
    )} == {
        "method": "ptq", "status": "queued", "finished": False, "stage": None, "progress": 0.0,
        "attempt": 0, "queue_position": 1, "cancel_requested_at": None, "started_at": None,
        "finished_at": None, "error": None, "result": None,
    }  # fmt: skip
    assert job["created_at"].endswith("Z")
    assert job["spec"] == {
        **body,
        "calibration": {**body["calibration"], "samples": 256, "batch_size": 32},
        "evaluation": None, "formats": ["torchscript"], "backend": "x86", "device": "auto",
        "max_accuracy_drop": 0.01, "seed": 0, "priority": 0, "timeout_s": 3600,
        "labels": {"run": "42"},
        "webhook": None,
        "config": {
            "mode": "static", "weight_dtype": "int8", "granularity": "per_channel",
            "group_size": 64, "observer": "histogram", "percentile": 99.99, "equalize": False,
            "bias_correction": False, "smoothquant": False, "smoothquant_alpha": 0.5,
            "adaround": False, "overrides": {},
        },
    }  # fmt: skip
    assert client.get(job["urls"]["self"]).json() == job
    events = client.get(job["urls"]["events"]).json()["data"]
    assert [(event["type"], event["data"]) for event in events] == [
        ("status", {"status": "queued"})
    ]


@pytest.mark.parametrize(
    ("config", "pointer", "words"),
    [
        ({"weight_dtype": "int4"}, "/config", "Mode weight_only alone takes int4"),
        (
            {"mode": "dynamic", "bias_correction": True},
            "/config",
            "Mode static alone takes bias_correction",
        ),
        ({"equalize": "yes"}, "/config/equalize", "boolean"),
        ({"percentile": 10}, "/config/percentile", "greater than 50"),
        ({"observer": "best"}, "/config/observer", "'histogram', 'minmax'"),
        ({"overrides": {"fc": "int3"}}, "/config/overrides/fc", "'int8', 'fp16'"),
    ],
)
def test_settings_that_make_no_sense_are_named(
    client: TestClient, body: dict[str, Any], config: dict[str, Any], pointer: str, words: str
) -> None:
    answer = client.post("/v1/jobs", json={**body, "config": config})
    assert answer.status_code == 422
    (error,) = answer.json()["errors"]
    assert error["pointer"] == pointer
    assert words in error["detail"]


def test_modes_that_find_no_ranges_need_no_calibration(
    client: TestClient, body: dict[str, Any]
) -> None:
    bare = {name: value for name, value in body.items() if name != "calibration"}
    refused = client.post("/v1/jobs", json=bare)
    assert refused.json()["errors"][0]["pointer"] == "/calibration"
    assert client.post("/v1/jobs", json={**bare, "config": {"mode": "dynamic"}}).status_code == 422
    model = client.get(f"/v1/models/{body['model_id']}").json()
    assert model["inputs"] is None  # which is why
    evaluation = {"dataset_id": body["calibration"]["dataset_id"]}
    fine = {**bare, "config": {"mode": "dynamic"}, "evaluation": evaluation}
    assert client.post("/v1/jobs", json=fine).status_code == 202


def test_the_broker_gets_the_jobs_id_and_nothing_else(
    client: TestClient, body: dict[str, Any], broker: Redis
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    deadline = time.monotonic() + 10
    while broker.llen("cpu") == 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    message = broker.lindex("cpu", 0)
    assert RUN_JOB.encode() in message
    envelope = json.loads(message)
    assert json.loads(base64.b64decode(envelope["body"]))[0] == [job["id"]]


def test_a_refused_job_sends_no_message_and_leaves_no_row(
    client: TestClient, body: dict[str, Any], broker: Redis
) -> None:
    answer = client.post("/v1/jobs", json={**body, "model_id": "mdl_" + "0" * 26})
    assert answer.status_code == 422
    assert client.get("/v1/jobs").json()["data"] == []
    assert broker.llen("cpu") == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "pointers"),
    [
        ({"method": "magic"}, ["/method"]),
        ({"method": None}, ["/method"]),
        ({"colour": 1}, ["/colour"]),
        ({"model_id": "mdl_x"}, ["/model_id"]),
        ({"config": {"mode": "x", "foo": 1}}, ["/config/mode", "/config/foo"]),
        ({"config": {"overrides": {"a/b": "int2"}}}, ["/config/overrides/a~1b"]),
        ({"calibration": {"dataset_id": NOBODY, "samples": 0}}, ["/calibration/samples"]),
        ({"formats": []}, ["/formats"]),
        ({"formats": ["tflite"]}, ["/formats/0"]),
        ({"device": "tpu"}, ["/device"]),
        ({"seed": -1}, ["/seed"]),
        ({"seed": 2**70}, ["/seed"]),
        ({"timeout_s": 10**9}, ["/timeout_s"]),
        ({"max_accuracy_drop": 2}, ["/max_accuracy_drop"]),
        ({"labels": {"a:b": "c"}}, ["/labels/a:b"]),
        ({"labels": {"a": "b\x00"}}, ["/labels/a"]),
        ({"webhook": {"url": "gopher://example.org"}}, ["/webhook/url"]),
        ({"method": "convert", "config": {"mode": "static"}}, ["/config/mode"]),
    ],
)  # fmt: skip
def test_faulty_fields_are_pointed_at(
    client: TestClient, body: dict[str, Any], changes: dict[str, Any], pointers: list[str]
) -> None:
    answer = client.post("/v1/jobs", json={**body, **changes})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["code"] == "invalid_request"
    assert [fault["pointer"] for fault in problem["errors"]] == pointers


def test_missing_fields_are_pointed_at(client: TestClient) -> None:
    problem = client.post("/v1/jobs", json={}).json()
    assert problem["errors"] == [{"pointer": "/method", "detail": "This field is required."}]
    problem = client.post("/v1/jobs", json={"method": "ptq"}).json()
    assert problem["errors"] == [{"pointer": "/model_id", "detail": "This field is required."}]


@both_databases
def test_references_that_lead_nowhere(
    client: TestClient, body: dict[str, Any], stranger: dict[str, str]
) -> None:
    nobody = "0" * 26
    for changes, code, pointer in (
        ({"model_id": f"mdl_{nobody}"}, "model_not_found", "/model_id"),
        (
            {"calibration": {"dataset_id": f"dst_{nobody}"}},
            "dataset_not_found",
            "/calibration/dataset_id",
        ),
        (
            {"evaluation": {"dataset_id": f"dst_{nobody}"}},
            "dataset_not_found",
            "/evaluation/dataset_id",
        ),
    ):
        problem = client.post("/v1/jobs", json={**body, **changes}).json()
        assert (problem["code"], problem["errors"][0]["pointer"]) == (code, pointer)
    problem = client.post("/v1/jobs", json=body, headers=stranger).json()
    assert problem["code"] == "model_not_found"
