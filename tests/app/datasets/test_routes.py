from __future__ import annotations

import numpy as np
import pytest
from starlette.testclient import TestClient

from app.settings import Settings
from tests.app import samples
from tests.app.samples import upload
from tests.databases import both_databases


@both_databases
@pytest.mark.parametrize("form", ["npz", "safetensors"])
def test_an_uploaded_dataset_is_described_and_comes_back_whole(
    client: TestClient, form: str
) -> None:
    make = samples.npz if form == "npz" else samples.safetensors
    content = make(input=samples.images(), label=samples.labels())
    data = upload(client, "datasets", content, labels='{"a": "b"}')
    assert data["format"] == form
    assert (data["samples"], data["has_labels"]) == (12, True)
    assert data["arrays"] == [
        {"name": "input", "dtype": "float32", "shape": [12, 1, 8, 8]},
        {"name": "label", "dtype": "int64", "shape": [12]},
    ]
    assert client.get(f"/v1/datasets/{data['id']}").json() == data
    answer = client.get(f"/v1/datasets/{data['id']}/content")
    assert answer.content == content
    assert f"sample.{form}" in answer.headers["content-disposition"]
    assert [each["id"] for each in client.get("/v1/datasets").json()["data"]] == [data["id"]]
    assert client.delete(f"/v1/datasets/{data['id']}").status_code == 204
    assert client.get(f"/v1/datasets/{data['id']}").status_code == 404


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arrays", "code"),
    [
        ({"input": np.zeros(3), "label": np.zeros(4)}, "label_mismatch"),
        ({"x": np.zeros(3)}, "unknown_array"),
        ({"input": np.zeros((0, 3))}, "empty_dataset"),
        ({"input": np.zeros((2**23, 2))}, "dataset_too_large"),
    ],
)
def test_a_faulty_dataset_leaves_nothing(
    client: TestClient, settings: Settings, arrays: dict[str, np.ndarray], code: str
) -> None:
    settings.limits.upload_bytes = 2**30
    content = samples.npz(**arrays)
    answer = client.post("/v1/datasets", files={"file": content}, data={"name": "x"})
    assert (answer.status_code, answer.json()["code"]) == (422, code)
    assert not [path for path in (settings.data_dir / "blobs").rglob("*") if path.is_file()]


def test_a_dataset_has_no_inputs_field(client: TestClient) -> None:
    content = samples.npz(input=samples.images())
    answer = client.post(
        "/v1/datasets", files={"file": content}, data={"name": "x", "inputs": "[]"}
    )
    assert answer.json()["errors"][0]["pointer"] == "/inputs"


def test_another_projects_dataset_is_404(client: TestClient, stranger: dict[str, str]) -> None:
    data = upload(client, "datasets", samples.npz(input=samples.images()))
    url = f"/v1/datasets/{data['id']}"
    assert client.get(url, headers=stranger).status_code == 404
    assert client.get(f"{url}/content", headers=stranger).status_code == 404
    assert client.delete(url, headers=stranger).status_code == 404


def test_a_model_and_a_dataset_id_are_no_swap(client: TestClient) -> None:
    data = upload(client, "datasets", samples.npz(input=samples.images()))
    assert client.get(f"/v1/models/{data['id']}").status_code == 404
