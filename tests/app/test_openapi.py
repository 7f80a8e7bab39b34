"""The OpenAPI document tells the truth: schemathesis asks everything it allows, and more."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from app.jobs.bodies import ConvertJob, DistillJob, MixedJob, PtqJob, QatJob
from tests.app import samples
from tests.app.server import Server, serve

# A body can be well-formed and still name a model that is not there, or a range outside a file.
_CONFIG = """
[checks]
positive_data_acceptance.expected-statuses = [
    "2xx", 304, 400, 401, 403, 404, 409, 412, 413, 415, 416, 422, 423, 460
]
# tus wants 412 for another version of itself
negative_data_rejection.expected-statuses = [
    400, 401, 403, 404, 406, 409, 412, 413, 415, 422, 460
]
missing_required_header.expected-statuses = [400, 401, 403, 404, 409, 412, 415, 422]

[[operations]]
include-name = "GET /readyz"
# no broker and no worker here: 503 is the truth
checks.not_a_server_error.enabled = false
checks.positive_data_acceptance.enabled = false

[[operations]]
include-name = "DELETE /v1/keys/{key_id}"
enabled = false  # it finds and revokes the very key it uses
"""

# pieces of tus uploads are bytes of a type that it does not know
_HOOKS = """
import schemathesis

schemathesis.serializer.alias("application/offset+octet-stream", "application/octet-stream")
"""


def check(server: Server, folder: Path, config: str, *arguments: str) -> None:
    path = folder / "schemathesis.toml"
    path.write_text('hooks = "hooks.py"\n' + _CONFIG + config)
    (folder / "hooks.py").write_text(_HOOKS)
    done = subprocess.run(
        [
            sys.executable, "-m", "schemathesis.cli", "--config-file", str(path), "run",
            f"{server.url}/openapi.json", "-H", f"Authorization: Bearer {server.key}",
            "--seed", "1", "--no-color", "--max-examples", "25", "--generation-database", "none",
            "--suppress-health-check", "all", *arguments,
        ],
        cwd=folder, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    assert "unexpected error" not in server.log.read_text()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing_on_an_empty_service(tmp_path: Path) -> None:
    quick = {"TERSOR_LIMIT_PREFLIGHT_WAIT_S": "0.1", "TERSOR_LIMIT_WAIT_S_MAX": "1"}
    with serve(tmp_path / "data", **quick) as server:
        check(server, tmp_path, "", "-n", "8")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_schemathesis_finds_nothing_where_there_is_something(tmp_path: Path) -> None:
    quick = {"TERSOR_LIMIT_PREFLIGHT_WAIT_S": "0.1", "TERSOR_LIMIT_WAIT_S_MAX": "1"}
    with serve(tmp_path / "data", **quick) as server, server.client() as client:
        ids = _fill(client)
        lines = [f'"{name}" = "{value}"' for name, value in ids.items()]
        check(
            server, tmp_path, "\n[parameters]\n" + "\n".join(lines) + "\n",
            "--include-method", "GET", "-n", "8",
        )  # fmt: skip
        log = server.log.read_text()
        assert f"GET /v1/models/{ids['path.model_id']}/content status=200" in log
        assert f"GET /v1/jobs/{ids['path.job_id']} status=200" in log


def _fill(client: httpx.Client) -> dict[str, str]:
    model: dict[str, Any] = samples.upload(client, "models", samples.traced_cnn())  # type: ignore[arg-type]
    content = samples.npz(input=samples.images(), label=samples.labels())
    data = samples.upload(client, "datasets", content)  # type: ignore[arg-type]
    fields = {
        "method": "ptq", "model_id": model["id"], "calibration": {"dataset_id": data["id"]}
    }  # fmt: skip
    job = client.post("/v1/jobs", json=fields).json()
    preflight = client.post("/v1/preflight", json=fields).json()
    return {
        "path.model_id": model["id"],
        "path.dataset_id": data["id"],
        "path.job_id": job["id"],
        "path.preflight_id": preflight["id"],
        "path.method": "ptq",
    }


def test_every_error_is_documented_as_a_problem_with_its_codes(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            for status, response in operation["responses"].items():
                if status >= "400" and path != "/readyz":
                    content = response["content"]["application/problem+json"]
                    assert content["schema"]["allOf"][1]["properties"]["code"]["enum"], (
                        path, method, status,
                    )  # fmt: skip
            if path.startswith("/v1"):
                assert operation["security"] == [{"key": []}]
                assert {"401", "403"} <= operation["responses"].keys()


@pytest.mark.slow
def test_operation_ids_are_unique_names(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    ids = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(ids) == len(set(ids))
    assert all(name.isidentifier() for name in ids)


@pytest.mark.parametrize("request_type", [PtqJob, QatJob, DistillJob, MixedJob, ConvertJob])
def test_examples_are_valid(
    request_type: type[PtqJob | QatJob | DistillJob | MixedJob | ConvertJob],
) -> None:
    for example in request_type.model_json_schema()["examples"]:
        assert request_type.model_validate(example).model_id
