"""Jobs that train: where teacher, student and data are named, and what a submit refuses."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.testclient import TestClient

from app.jobs.tables import Job, JobDataset
from app.state import Services
from tests.app import samples
from tests.app.jobs.conftest import change
from tests.app.samples import upload
from tests.databases import both_databases

NOBODY = "0" * 26


@pytest.fixture
def student(client: TestClient) -> dict[str, Any]:
    return upload(client, "models", samples.scripted_cnn())


@pytest.fixture
def distill(model: dict[str, Any], data: dict[str, Any], student: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "distill", "model_id": model["id"], "training_dataset_id": data["id"],
        "config": {"student_model_id": student["id"], "batch_size": 4},
    }  # fmt: skip


@pytest.fixture
def qat(model: dict[str, Any], data: dict[str, Any]) -> dict[str, Any]:
    return {
        "method": "qat", "model_id": model["id"], "training_dataset_id": data["id"],
        "config": {"batch_size": 4},
    }  # fmt: skip


def refused(client: TestClient, fields: dict[str, Any]) -> tuple[str, str, str]:
    for path in ("/v1/jobs", "/v1/preflight"):
        answer = client.post(path, json=fields)
        assert answer.status_code == 422, answer.text
    (error,) = answer.json()["errors"]
    return answer.json()["code"], error["pointer"], error["detail"]


@both_databases
def test_a_training_job_remembers_its_student_and_its_data(
    client: TestClient, services: Services, distill: dict[str, Any], qat: dict[str, Any]
) -> None:
    for body in (distill, qat):
        job = client.post("/v1/jobs", json=body)
        assert job.status_code == 202, job.text
        spec = job.json()["spec"]
        assert spec["training_dataset_id"] == body["training_dataset_id"]
        assert (spec["config"]["batch_size"], spec["config"]["epochs"]) == (4, None)
        with services.database.read() as session:
            row = session.get(Job, job.json()["id"])
            data = session.get(JobDataset, (job.json()["id"], "training"))
        assert row is not None
        assert row.student_model_id == body["config"].get("student_model_id")
        assert data is not None
        assert data.dataset_id == body["training_dataset_id"]


def test_ids_are_taken_from_beside_the_config_and_from_within(
    client: TestClient, distill: dict[str, Any], student: dict[str, Any]
) -> None:
    expected = client.post("/v1/jobs", json=distill).json()["spec"]
    dataset = distill.pop("training_dataset_id")
    distill["student_model_id"] = distill["config"].pop("student_model_id")
    distill["config"]["training_dataset_id"] = dataset
    assert client.post("/v1/jobs", json=distill).json()["spec"] == expected
    distill["training_dataset_id"] = dataset
    distill["config"]["student_model_id"] = student["id"]
    assert client.post("/v1/jobs", json=distill).json()["spec"] == expected
    bare = {name: value for name, value in distill.items() if name != "config"}
    assert refused(client, bare)[:2] == ("invalid_request", "/config/batch_size")  # 64 of 12
    for name in ("training_dataset_id", "student_model_id"):
        other = distill[name][:-1] + ("0" if distill[name][-1] != "0" else "1")
        code, pointer, detail = refused(client, distill | {name: other})
        assert (code, pointer) == ("invalid_request", f"/{name}")
        assert "twice" in detail


def test_other_methods_take_neither_student_nor_training_data(
    client: TestClient, body: dict[str, Any], qat: dict[str, Any], distill: dict[str, Any]
) -> None:
    for extra in ("training_dataset_id", "student_model_id"):
        found = refused(client, body | {extra: "x"})
        assert found == ("invalid_request", f"/{extra}", "There is no such field.")
    found = refused(client, qat | {"student_model_id": distill["model_id"]})
    assert found[:2] == ("invalid_request", "/student_model_id")


@pytest.mark.parametrize("method", ["distill", "qat"])
def test_references_that_lead_nowhere(
    client: TestClient, method: str, request: pytest.FixtureRequest, stranger: dict[str, str]
) -> None:
    body: dict[str, Any] = request.getfixturevalue(method)
    without = {name: value for name, value in body.items() if name != "training_dataset_id"}
    required = ("invalid_request", "/training_dataset_id", "This field is required.")
    assert refused(client, without) == required
    found = refused(client, body | {"training_dataset_id": f"dst_{NOBODY}"})
    assert found[:2] == ("dataset_not_found", "/training_dataset_id")
    if method == "distill":
        for student in (f"mdl_{NOBODY}", "mdl_x"):
            lost = body | {"config": {"student_model_id": student, "batch_size": 4}}
            assert refused(client, lost)[:2] == ("model_not_found", "/config/student_model_id")
    answer = client.post("/v1/jobs", json=body, headers=stranger)
    assert answer.json()["code"] == "model_not_found"


def test_distillation_needs_one_student(client: TestClient, distill: dict[str, Any]) -> None:
    for config in ({}, {**distill["config"], "prune": 0.5}):
        code, pointer, detail = refused(client, distill | {"config": config})
        assert (code, pointer) == ("invalid_request", "/config")
        assert "student_model_id or prune" in detail
    without = {name: value for name, value in distill.items() if name != "config"}
    assert refused(client, without) == ("invalid_request", "/config", "This field is required.")
    pruned = distill | {"config": {"prune": 0.5, "batch_size": 4}}
    assert client.post("/v1/jobs", json=pruned).status_code == 202


def test_data_must_fit_teacher_and_student(
    client: TestClient, distill: dict[str, Any], qat: dict[str, Any], data: dict[str, Any]
) -> None:
    pair = samples.npz(input_0=samples.images(), input_1=samples.images())
    double = upload(client, "datasets", pair)["id"]
    for body in (distill, qat):
        found = refused(client, body | {"training_dataset_id": double})
        assert found[:2] == ("shape_mismatch", "/training_dataset_id")
        found = refused(client, body | {"evaluation": {"dataset_id": double}})
        assert found[:2] == ("shape_mismatch", "/evaluation/dataset_id")
    strange = upload(
        client, "models", samples.traced_cnn(),
        inputs='[{"name": "image", "shape": ["batch", 3, 8, 8]}]',
    )["id"]  # fmt: skip
    distill["config"]["student_model_id"] = strange
    code, pointer, detail = refused(client, distill)
    assert (code, pointer) == ("shape_mismatch", "/training_dataset_id")
    assert detail.startswith("The student: input has the shape")
    distill["config"]["student_model_id"] = upload(client, "models", samples.text_input())["id"]
    assert refused(client, distill)[:2] == ("bad_signature", "/config/student_model_id")


def test_labels_are_asked_for_where_they_are_needed(
    client: TestClient, distill: dict[str, Any], qat: dict[str, Any]
) -> None:
    bare = upload(client, "datasets", samples.npz(input=samples.images()))["id"]
    for body, config, pointer in (
        (qat, {"loss": "distill"}, None),
        (qat, {"loss": "task"}, "/config/loss"),
        (qat, {"loss": "both"}, "/config/loss"),
        (distill, {"loss": "kl_ce"}, None),
        (distill, {"loss": "dist"}, None),
        (distill, {"finetune_epochs": 1}, "/config/finetune_epochs"),
    ):  # fmt: skip
        labelled = body | {"config": body["config"] | config}
        assert client.post("/v1/jobs", json=labelled).status_code == 202
        unlabelled = labelled | {"training_dataset_id": bare}
        if pointer is None:
            assert client.post("/v1/jobs", json=unlabelled).status_code == 202
        else:
            assert refused(client, unlabelled)[:2] == ("label_mismatch", pointer)


def test_a_batch_larger_than_the_data_is_told_in_numbers(
    client: TestClient, qat: dict[str, Any]
) -> None:
    for config, status in (
        ({"batch_size": 12, "validation_fraction": 0.0}, 202),
        ({"batch_size": 11}, 202),
        ({"batch_size": 12}, 422),
        ({"batch_size": 10, "validation_fraction": 0.25}, 422),
    ):
        answer = client.post("/v1/jobs", json=qat | {"config": config})
        assert answer.status_code == status, answer.text
    code, pointer, detail = refused(client, qat | {"config": config})
    assert (code, pointer) == ("invalid_request", "/config/batch_size")
    assert "A batch of 10" in detail
    assert "of 12 samples" in detail
    assert "keeps 3 back" in detail


@pytest.mark.parametrize(
    ("config", "pointer"),
    [
        ({"epochs": 0}, "/config/epochs"),
        ({"epochs": 1, "steps": 1}, "/config"),
        ({"learning_rate": 0}, "/config/learning_rate"),
        ({"temperature": -1}, "/config/temperature"),
        ({"augment": ["rotate"]}, "/config/augment/0"),
        ({"alpha": 0.5}, "/config/alpha"),
    ],
)
def test_faulty_training_fields_are_pointed_at(
    client: TestClient, qat: dict[str, Any], config: dict[str, Any], pointer: str
) -> None:
    found = refused(client, qat | {"config": qat["config"] | config})
    assert found[:2] == ("invalid_request", pointer)


@both_databases
def test_student_and_training_data_stay_until_the_job_has_ended(
    client: TestClient, services: Services, distill: dict[str, Any], student: dict[str, Any]
) -> None:
    job = client.post("/v1/jobs", json=distill).json()
    needed = (
        f"/v1/models/{student['id']}",
        f"/v1/models/{distill['model_id']}",
        f"/v1/datasets/{distill['training_dataset_id']}",
    )
    for path in needed:
        assert client.delete(path).json()["code"] == "in_use"
    change(services, job["id"], status="failed")
    for path in needed:
        assert client.delete(path).status_code == 204
