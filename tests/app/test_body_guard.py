from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from app.body_guard import MAX_DEPTH, check_depth
from app.errors import BadRequest

JSON = {"Content-Type": "application/json"}


def test_a_body_over_the_limit_is_413(client: TestClient) -> None:
    answer = client.post("/v1/jobs", content=b" " * (2**20 + 1), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (413, "too_large")


def test_a_body_over_the_limit_that_hides_its_length_is_413(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(20):
            yield b" " * 100_000

    answer = client.post("/v1/jobs", content=chunks(), headers=JSON)
    assert answer.status_code == 413


def test_multipart_is_bounded_too_where_no_upload_belongs(client: TestClient) -> None:
    answer = client.post("/v1/jobs", files={"file": b"x" * (2**20 + 1)})
    assert answer.status_code == 413


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 50_000, "[" * 40 + "]" * 40])
def test_deep_json_is_400(client: TestClient, text: str) -> None:
    answer = client.post("/v1/jobs", content=text.encode(), headers=JSON)
    assert (answer.status_code, answer.json()["code"]) == (400, "json_too_deep")


def test_brackets_in_strings_and_side_by_side_do_not_count() -> None:
    check_depth(json.dumps({"a": "[" * 100 + '\\"{'}).encode())
    check_depth(json.dumps([[]] * 1000).encode())
    check_depth(("[" * MAX_DEPTH + "]" * MAX_DEPTH).encode())
    with pytest.raises(BadRequest):
        check_depth(("[" * (MAX_DEPTH + 1)).encode())


@pytest.mark.parametrize(
    "text", ["{", "", "nul", '{"a":1,}', "\xff", '{"method": ' + "9" * 5000 + "}"]
)
def test_broken_json_is_a_client_error(client: TestClient, text: str) -> None:
    answer = client.post("/v1/jobs", content=text.encode("latin-1"), headers=JSON)
    assert answer.status_code in (400, 422)
    assert answer.headers["content-type"] == "application/problem+json"


def test_lone_surrogates_do_not_break_the_answer(client: TestClient) -> None:
    text = '{"method": "ptq", "\\ud800": 1, "labels": {"a": "\\udfff"}}'
    answer = client.post("/v1/jobs", content=text.encode(), headers=JSON)
    assert answer.status_code == 422
