from __future__ import annotations

import base64
import json
import threading
import time
from typing import Any

import numpy as np
import pytest
from redis import Redis
from sqlalchemy import update
from starlette.testclient import TestClient

from app.db import utc_now
from app.jobs.tables import Job, JobEvent, WorkerSeen
from app.queue import RUN_JOB
from app.settings import Settings
from app.state import Services
from tests.app import samples
from tests.app.samples import upload
from tests.databases import both_databases

NOBODY = "dst_" + "0" * 26


@pytest.fixture
def model(client: TestClient) -> dict[str, Any]:
    return upload(client, "models", samples.traced_cnn())


@pytest.fixture
def data(client: TestClient) -> dict[str, Any]:
    content = samples.npz(input=samples.images(), label=samples.labels())
    return upload(client, "datasets", content)


@pytest.fixture
def body(model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "ptq",
        "model_id": model["id"],
        "calibration": {"dataset_id": data["id"]},
    }


def change(services: Services, job_id: str, **values: Any) -> None:
    """Do to the row what a worker would."""
    with services.database.write() as session:
        session.execute(
            update(Job).where(Job.id == job_id).values(version=Job.version + 1, **values)
        )


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
        "config": {
            "mode": "static", "weight_dtype": "int8", "granularity": "per_channel",
            "observer": "histogram", "overrides": {},
        },
    }  # fmt: skip
    assert client.get(job["urls"]["self"]).json() == job
    events = client.get(job["urls"]["events"]).json()["data"]
    assert [(event["type"], event["data"]) for event in events] == [
        ("status", {"status": "queued"})
    ]


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
        ({"formats": ["onnx"]}, ["/formats/0"]),
        ({"device": "tpu"}, ["/device"]),
        ({"seed": -1}, ["/seed"]),
        ({"seed": 2**70}, ["/seed"]),
        ({"timeout_s": 10**9}, ["/timeout_s"]),
        ({"max_accuracy_drop": 2}, ["/max_accuracy_drop"]),
        ({"labels": {"a:b": "c"}}, ["/labels/a:b"]),
        ({"labels": {"a": "b\x00"}}, ["/labels/a"]),
        ({"webhook": {"url": "https://example.org"}}, ["/webhook"]),
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


def test_cuda_needs_a_live_worker_that_has_it(
    client: TestClient, body: dict[str, Any], services: Services, broker: Redis
) -> None:
    fields = {**body, "device": "cuda"}
    assert refused(client, **fields) == ("device_unavailable", "/device")
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


@both_databases
def test_a_queued_job_is_cancelled_at_once(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    answer = client.post(job["urls"]["cancel"])
    assert answer.status_code == 202
    cancelled = answer.json()
    assert (cancelled["status"], cancelled["finished"]) == ("cancelled", True)
    assert cancelled["finished_at"] == cancelled["cancel_requested_at"]
    again = client.post(job["urls"]["cancel"])
    assert (again.status_code, again.json()["code"]) == (409, "already_finished")
    messages = [event["message"] for event in client.get(job["urls"]["events"]).json()["data"]]
    assert messages == ["queued", "cancelled"]


@both_databases
def test_a_running_job_is_asked_to_stop(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    change(services, job["id"], status="running", started_at=utc_now(), attempt=1)
    first = client.post(job["urls"]["cancel"])
    assert first.status_code == 202
    assert first.json()["status"] == "running"
    assert first.json()["cancel_requested_at"]
    second = client.post(job["urls"]["cancel"])
    assert second.status_code == 202
    assert second.json() == first.json()


def test_what_is_not_there_cannot_be_cancelled(
    client: TestClient, body: dict[str, Any], stranger: dict[str, str]
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    for url in ("self", "events", "artifacts"):
        assert client.get(job["urls"][url], headers=stranger).status_code == 404
    assert client.post(job["urls"]["cancel"], headers=stranger).status_code == 404
    assert client.delete(job["urls"]["self"], headers=stranger).status_code == 404
    assert client.post("/v1/jobs/job_nope/cancel").status_code == 404
    assert client.get(job["urls"]["self"]).json()["status"] == "queued"


@both_databases
def test_only_a_finished_job_can_be_removed(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json={**body, "labels": {"a": "b"}}).json()
    assert client.delete(job["urls"]["self"]).json()["code"] == "in_use"
    client.post(job["urls"]["cancel"])
    assert client.delete(job["urls"]["self"]).status_code == 204
    assert client.get(job["urls"]["self"]).status_code == 404
    with services.database.read() as session:
        assert session.query(JobEvent).count() == 0


@both_databases
def test_lists_filter_and_page(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    jobs = [
        client.post("/v1/jobs", json={**body, "labels": {"run": str(i % 2), "k": "a:b"}}).json()
        for i in range(4)
    ]
    fields = {"method": "convert", "model_id": body["model_id"], "calibration": body["calibration"]}
    jobs.append(client.post("/v1/jobs", json=fields).json())
    client.post(jobs[0]["urls"]["cancel"])

    def ids(**query: Any) -> list[int]:
        answer = client.get("/v1/jobs", params=query)
        assert answer.status_code == 200, answer.text
        order = {job["id"]: index for index, job in enumerate(jobs)}
        return [order[job["id"]] for job in answer.json()["data"]]

    assert ids() == [4, 3, 2, 1, 0]
    assert ids(status="cancelled") == [0]
    assert ids(method="convert") == [4]
    assert ids(label="run:1") == [3, 1]
    assert ids(label="k:a:b", status="queued") == [3, 2, 1]
    assert ids(label="run:2") == []
    assert ids(created_after=jobs[2]["created_at"]) == [4, 3]
    assert ids(limit=2, after=jobs[3]["id"]) == [2, 1]


def test_queue_position_counts_who_goes_first(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    first, second, urgent = (
        client.post("/v1/jobs", json={**body, "priority": priority}).json()
        for priority in (0, 0, 5)
    )

    def positions() -> list[int | None]:
        return [
            client.get(job["urls"]["self"]).json()["queue_position"]
            for job in (first, second, urgent)
        ]

    assert positions() == [2, 3, 1]
    change(services, urgent["id"], status="running")
    assert positions() == [1, 2, None]


@both_databases
def test_events_page_oldest_first(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    with services.database.write() as session:
        for step in range(4):
            session.add(
                JobEvent(
                    job_id=job["id"], created_at=utc_now(), level="info", type="metrics",
                    message=f"step {step}", data={"step": step},
                )
            )  # fmt: skip
    page = client.get(job["urls"]["events"], params={"limit": 3}).json()
    assert [event["message"] for event in page["data"]] == ["queued", "step 0", "step 1"]
    assert page["has_more"]
    query = {"after": page["next_after"]}
    rest = client.get(job["urls"]["events"], params=query).json()
    assert [event["data"]["step"] for event in rest["data"]] == [2, 3]
    assert not rest["has_more"]


@both_databases
def test_waiting_ends_when_the_job_changes(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    job = client.post("/v1/jobs", json=body).json()
    timer = threading.Timer(0.4, change, (services, job["id"]), {"status": "running"})
    timer.start()
    began_s = time.monotonic()
    answer = client.get(job["urls"]["self"], headers={"Prefer": "wait=20"})
    assert time.monotonic() - began_s < 5
    timer.join()
    assert answer.json()["status"] == "running"
    assert answer.headers["preference-applied"] == "wait=20"


def test_waiting_ends_when_time_is_up(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    began_s = time.monotonic()
    answer = client.get(job["urls"]["self"], headers={"Prefer": "wait=1"})
    assert 0.9 < time.monotonic() - began_s < 5
    assert answer.json()["status"] == "queued"
    tag = answer.headers["etag"]
    headers = {"Prefer": "wait=1", "If-None-Match": tag}
    assert client.get(job["urls"]["self"], headers=headers).status_code == 304


def test_who_knows_an_older_version_does_not_wait(
    client: TestClient, body: dict[str, Any], services: Services
) -> None:
    answer = client.post("/v1/jobs", json=body)
    change(services, answer.json()["id"], status="running")
    headers = {"Prefer": "wait=20", "If-None-Match": answer.headers["etag"]}
    began_s = time.monotonic()
    fresh = client.get(answer.json()["urls"]["self"], headers=headers)
    assert time.monotonic() - began_s < 3
    assert (fresh.status_code, fresh.json()["status"]) == (200, "running")


def test_a_finished_job_answers_at_once(client: TestClient, body: dict[str, Any]) -> None:
    job = client.post("/v1/jobs", json=body).json()
    client.post(job["urls"]["cancel"])
    began_s = time.monotonic()
    client.get(job["urls"]["self"], headers={"Prefer": "wait=20"})
    assert time.monotonic() - began_s < 3


@both_databases
def test_a_preflight_answers_later_where_no_worker_comes(
    client: TestClient, body: dict[str, Any], services: Services, broker: Redis
) -> None:
    answer = client.post("/v1/preflight", json=body)
    assert answer.status_code == 202
    view = answer.json()
    assert answer.headers["location"] == view["urls"]["self"]
    assert (view["finished"], view["ok"], view["queue_length"]) == (False, None, 0)
    assert client.get("/v1/jobs").json()["data"] == []
    assert client.get(f"/v1/jobs/{view['id']}").status_code == 404
    error = {"code": "shape_mismatch", "message": "too wide", "stage": "load", "retryable": False}
    change(services, view["id"], status="failed", error=error, finished_at=utc_now())
    done = client.get(view["urls"]["self"])
    assert done.status_code == 200
    assert done.json()["ok"] is False
    assert done.json()["error"] == {"code": "shape_mismatch", "message": "too wide"}


def test_a_preflight_answers_at_once_when_the_worker_is_quick(
    client: TestClient, body: dict[str, Any], services: Services, settings: Settings
) -> None:
    settings.limits.preflight_wait_s = 20
    client.post("/v1/jobs", json=body)

    def work() -> None:
        deadline = time.monotonic() + 10
        while time.monotonic() < deadline:
            with services.database.read() as session:
                found = session.query(Job.id).filter_by(queue="inspect").first()
            if found is not None:
                change(services, found[0], status="running")
                change(
                    services, found[0], status="succeeded", result={"layers": []},
                    finished_at=utc_now(),
                )  # fmt: skip
                return
            time.sleep(0.02)

    worker = threading.Thread(target=work)
    worker.start()
    answer = client.post("/v1/preflight", json=body)
    worker.join()
    assert answer.status_code == 200
    assert answer.json()["ok"] is True
    assert answer.json()["result"] == {"layers": []}
    assert answer.json()["queue_length"] == 1


def test_methods_describe_themselves(client: TestClient) -> None:
    methods = client.get("/v1/methods").json()["data"]
    assert [method["name"] for method in methods] == ["ptq", "convert"]
    for method in methods:
        assert client.get(f"/v1/methods/{method['name']}").json() == method
        schema = client.get(method["schema_url"]).json()
        assert schema["additionalProperties"] is False
        defaults = {name: field["default"] for name, field in schema["properties"].items()}
        assert defaults == method["defaults"]
        assert all(field["description"] for field in schema["properties"].values())
    assert client.get("/v1/methods/magic").status_code == 404
    assert client.get("/v1/methods/magic/schema").status_code == 404
