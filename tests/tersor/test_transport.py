"""Retries and errors: what is repeated, what never is, and what the caller sees."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

import tersor
from tersor import Client
from tersor.transport import path_of

Answer = httpx.Response | Exception


def problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = {"status": status, "code": code, "detail": "Do this.", "errors": [], "request_id": "r1"}
    return httpx.Response(status, json=body, headers=headers)


def ok(body: Any) -> httpx.Response:
    return httpx.Response(200, json=body)


class Script:
    """A service that gives the answers it was told to, in turn."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []
        self.pauses_s: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def client(self) -> Client:
        return Client(
            "http://service", "tsr_key", transport=httpx.MockTransport(self),
            sleep=self.pauses_s.append,
        )  # fmt: skip


MODEL = {"id": "mdl_1", "name": "m"}
JOB = {"id": "job_1", "status": "queued"}


def get(client: Client) -> Any:
    return client.models.get("mdl_1")


def submit(client: Client) -> Any:
    return client.jobs.submit("convert", "mdl_1")


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_service_is_asked_again_after_the_time_it_names(status: int) -> None:
    script = Script(problem(status, "busy", **{"Retry-After": "7"}), ok(MODEL))
    assert get(script.client()).id == "mdl_1"
    assert script.pauses_s == [7.0]


def test_a_submit_that_a_busy_service_refused_is_sent_again() -> None:
    script = Script(problem(503, "database_busy", **{"Retry-After": "1"}), ok(JOB))
    assert submit(script.client()).id == "job_1"
    assert script.requests[0].content == script.requests[1].content


LOST = [
    httpx.ReadError("cut"), httpx.ReadTimeout("slow"), httpx.RemoteProtocolError("gone"),
    httpx.WriteError("cut"),
]  # fmt: skip


@pytest.mark.parametrize("answer", [*LOST, *map(httpx.Response, (502, 503, 504))])
def test_what_creates_is_sent_again_with_the_same_key(answer: Answer, model_file: Path) -> None:
    for create in (
        submit,
        lambda client: client.jobs.retry("job_1"),
        lambda client: client.models.upload(model_file),
        lambda client: client.datasets.upload(model_file),
        lambda client: client.models.from_artifact("art_1", "m"),
        lambda client: client.keys.create("ci"),
        lambda client: client.projects.create("vision"),
    ):
        script = Script(answer, answer, ok(JOB))
        create(script.client())
        keys = {request.headers["Idempotency-Key"] for request in script.requests}
        assert [uuid.UUID(key).version for key in keys] == [4]
        assert len({request.content for request in script.requests}) == 1
        assert len(script.requests) == 3


def test_each_call_has_a_key_of_its_own_unless_it_was_given_one() -> None:
    script = Script(*[ok(JOB)] * 4)
    client = script.client()
    submit(client)
    submit(client)
    client.jobs.submit("convert", "mdl_1", idempotency_key="mine")
    client.jobs.submit("convert", "mdl_1", idempotency_key="mine")
    keys = [request.headers["Idempotency-Key"] for request in script.requests]
    assert len(set(keys[:2])) == 2
    assert keys[2:] == ["mine", "mine"]
    assert b"mine" not in script.requests[2].content


@pytest.mark.parametrize("answer", LOST)
def test_a_secret_whose_answer_was_lost_is_not_renewed_again(answer: Exception) -> None:
    script = Script(answer)
    with pytest.raises(tersor.TransportError, match="may have been done") as caught:
        script.client().webhooks.renew_secret()
    assert caught.value.sent
    assert len(script.requests) == 1
    assert "Idempotency-Key" not in script.requests[0].headers


def test_a_secret_is_not_renewed_again_when_a_gateway_says_503_without_a_time() -> None:
    script = Script(httpx.Response(503, text="upstream?"))
    with pytest.raises(tersor.Unavailable):
        script.client().webhooks.renew_secret()


def test_a_submit_that_may_have_come_through_once_says_so_though_the_last_try_did_not() -> None:
    refused = [httpx.ConnectError("refused") for _ in range(4)]
    with pytest.raises(tersor.TransportError, match="may have been done") as caught:
        submit(Script(httpx.ReadError("cut"), *refused).client())
    assert caught.value.sent


def test_a_submit_that_never_left_is_sent_again() -> None:
    script = Script(httpx.ConnectError("refused"), ok(JOB))
    assert submit(script.client()).id == "job_1"


@pytest.mark.parametrize(
    "answer", [httpx.ReadError("cut"), httpx.ReadTimeout("slow"), httpx.Response(502)]
)
def test_a_read_is_repeated_after_a_lost_connection(answer: Answer) -> None:
    script = Script(answer, answer, ok(MODEL))
    assert get(script.client()).id == "mdl_1"
    assert len(script.pauses_s) == 2


def test_cancelling_is_repeated_since_twice_is_as_good_as_once() -> None:
    script = Script(httpx.ReadError("cut"), ok(JOB))
    assert script.client().jobs.cancel("job_1").id == "job_1"


def test_a_delete_whose_first_answer_was_lost_takes_not_found_for_done() -> None:
    script = Script(httpx.ReadError("cut"), problem(404, "not_found"))
    script.client().models.delete("mdl_1")
    assert len(script.requests) == 2


def test_a_delete_of_what_is_not_there_says_so() -> None:
    with pytest.raises(tersor.NotFound):
        Script(problem(404, "not_found")).client().models.delete("mdl_1")


def test_trying_ends_after_five_times() -> None:
    script = Script(*[httpx.ConnectError("refused") for _ in range(9)])
    with pytest.raises(tersor.TransportError, match="tersor up") as caught:
        get(script.client())
    assert not caught.value.sent
    assert caught.value.code == "cannot_connect"
    assert len(script.requests) == 5


def test_a_time_that_is_too_long_to_sleep_is_given_to_the_caller() -> None:
    script = Script(problem(429, "rate_limited", **{"Retry-After": "3600"}))
    with pytest.raises(tersor.RateLimited) as caught:
        get(script.client())
    assert caught.value.retry_after_s == 3600
    assert script.pauses_s == []


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, tersor.BadRequest), (401, tersor.Unauthorized), (403, tersor.Forbidden),
        (404, tersor.NotFound), (409, tersor.Conflict), (413, tersor.TooLarge),
        (415, tersor.ApiError), (422, tersor.Unprocessable), (500, tersor.ServerError),
        (507, tersor.ServerError),
    ],
)  # fmt: skip
def test_a_problem_becomes_the_exception_of_its_status(
    status: int, kind: type[tersor.ApiError]
) -> None:
    script = Script(problem(status, "some_code"))
    with pytest.raises(kind) as caught:
        get(script.client())
    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.detail) == (status, "some_code", "Do this.")
    assert error.request_id == "r1"
    assert len(script.requests) == 1


def test_the_fields_at_fault_are_named() -> None:
    body = {
        "code": "invalid_request",
        "detail": "See the fields.",
        "errors": [{"pointer": "/config/observer", "detail": "Unknown."}],
    }
    with pytest.raises(tersor.Unprocessable) as caught:
        submit(Script(httpx.Response(422, json=body)).client())
    assert caught.value.errors == (tersor.FieldError("/config/observer", "Unknown."),)
    assert str(caught.value) == "invalid_request: See the fields. (/config/observer: Unknown.)"


@pytest.mark.parametrize("body", ["<html>", "[1]", '"text"', ""])
def test_an_answer_that_is_no_problem_document_is_told_by_its_status(body: str) -> None:
    with pytest.raises(tersor.NotFound, match="http_404"):
        get(Script(httpx.Response(404, text=body)).client())


def test_the_key_and_the_version_are_sent() -> None:
    script = Script(ok(MODEL))
    get(script.client())
    assert script.requests[0].headers["Authorization"] == "Bearer tsr_key"
    assert script.requests[0].headers["User-Agent"] == f"tersor/{tersor.__version__}"


def test_a_redirect_is_not_followed_so_the_key_stays_where_it_was_meant_for() -> None:
    script = Script(httpx.Response(307, headers={"Location": "http://elsewhere/"}))
    with pytest.raises(tersor.ApiError):
        get(script.client())


def test_a_proxy_is_not_asked_for_our_own_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    client = Client("http://127.0.0.1:9", transport=None)
    assert not client._transport._http.trust_env


@pytest.mark.parametrize(
    "call", [lambda c: c.models.get(""), lambda c: c.jobs.cancel(""), lambda c: c.keys.revoke("")]
)
def test_an_empty_id_names_nothing(call: Callable[[Client], Any]) -> None:
    with pytest.raises(ValueError, match="empty"):
        call(Script().client())


def test_an_id_cannot_leave_its_place_in_the_path() -> None:
    assert path_of("models", "../keys?x=1") == "/v1/models/..%2Fkeys%3Fx%3D1"


def test_a_list_is_fetched_page_by_page_and_no_further_than_asked() -> None:
    def page(first: int, *, more: bool) -> httpx.Response:
        items = [{"id": f"mdl_{number}"} for number in range(first, first + 2)]
        return ok({"data": items, "has_more": more, "next_after": items[-1]["id"]})

    script = Script(page(0, more=True), page(2, more=False))
    assert [model.id for model in script.client().models.list()] == [f"mdl_{n}" for n in range(4)]
    assert script.requests[1].url.params["after"] == "mdl_1"
    script = Script(page(0, more=True))
    assert len(list(script.client().models.list(2))) == 2
    assert len(script.requests) == 1
