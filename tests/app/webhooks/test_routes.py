from __future__ import annotations

import json
from ipaddress import ip_network
from typing import Any

import pytest
from sqlalchemy import select
from starlette.testclient import TestClient

from app.settings import InvalidSettings, Settings, WebhookSettings, get_settings
from app.state import Services
from app.webhooks.secrets import list_secrets
from app.webhooks.tables import WebhookDelivery
from app.webhooks.targets import TargetRefused, check_address
from tests.app.conftest import Key, make_key
from tests.app.jobs.conftest import body, change, data, model
from tests.databases import both_databases

__all__ = ["body", "data", "model"]  # fixtures

HOOK = {"url": "https://hooks.example.com/x?y=1"}


@pytest.fixture
def secret(client: TestClient) -> str:
    return str(client.post("/v1/webhooks/secret").json()["secret"])


def test_a_secret_is_shown_once_and_the_one_before_signs_for_a_while(
    client: TestClient, services: Services, key: Key, secret: str
) -> None:
    assert secret.startswith("whsec_")
    second = client.post("/v1/webhooks/secret")
    assert second.headers["cache-control"] == "no-store"
    with services.database.read() as session:
        assert list_secrets(session, key.project_id) == [second.json()["secret"], secret]


def test_a_reader_makes_no_secret(client: TestClient, settings: Settings) -> None:
    reader = make_key(settings, "default", ("read",)).header
    assert client.post("/v1/webhooks/secret", headers=reader).status_code == 403


def test_a_job_with_a_webhook_needs_a_secret(client: TestClient, body: dict[str, Any]) -> None:
    answer = client.post("/v1/jobs", json={**body, "webhook": HOOK})
    assert (answer.status_code, answer.json()["code"]) == (422, "webhook_secret_missing")
    client.post("/v1/webhooks/secret")
    job = client.post("/v1/jobs", json={**body, "webhook": HOOK})
    assert job.status_code == 202, job.text
    assert job.json()["spec"]["webhook"] == {
        **HOOK, "events": ["succeeded", "failed", "cancelled"]
    }  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1/", "http://[::1]:8080/", "https://10.1.2.3/x", "http://169.254.169.254/",
        "http://[::ffff:192.168.0.1]/", "http://0.0.0.0/", "https://u:p@example.com/",
        "http://[fd00::1]/", "http://224.0.0.1/", "https:///x", "http://example.com:99999/",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused_at_once(
    client: TestClient, body: dict[str, Any], secret: str, url: str
) -> None:
    for path in ("/v1/jobs", "/v1/preflight"):
        answer = client.post(path, json={**body, "webhook": {"url": url}})
        assert (answer.status_code, answer.json()["code"]) == (422, "webhook_refused"), url
        assert answer.json()["errors"][0]["pointer"] == "/webhook/url"


@pytest.mark.slow
@pytest.mark.parametrize(
    "webhook",
    [
        {"url": "ftp://example.com/"}, {"url": "file:///etc/passwd"}, {"url": "https://a b/"},
        {"url": "https://example.com/\n"}, {}, {**HOOK, "events": ["started"]},
        {**HOOK, "events": []}, {**HOOK, "secret": "x"}, {"url": "https://e.com/" + "x" * 2000},
    ],
)  # fmt: skip
def test_a_webhook_that_cannot_be_is_refused(
    client: TestClient, body: dict[str, Any], secret: str, webhook: dict[str, Any]
) -> None:
    answer = client.post("/v1/jobs", json={**body, "webhook": webhook})
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")
    assert answer.json()["errors"][0]["pointer"].startswith("/webhook")


@pytest.mark.parametrize(
    ("address", "networks", "passes"),
    [
        ("93.184.215.14", (), True),
        ("2606:4700::1111", (), True),
        ("10.1.2.3", ("10.1.0.0/16",), True),
        ("10.2.2.3", ("10.1.0.0/16",), False),
        ("::ffff:10.1.2.3", ("10.1.0.0/16",), True),
        ("::ffff:10.2.2.3", ("10.1.0.0/16",), False),
        ("64:ff9b::7f00:1", (), False),  # NAT64 of 127.0.0.1
        ("2002:7f00:1::", (), False),  # 6to4 of it
        ("100.64.0.1", (), False),
        ("fe80::1%eth0", (), False),
        ("255.255.255.255", (), False),
        ("::", (), False),
    ],
)
def test_which_addresses_a_webhook_may_go_to(
    address: str, networks: tuple[str, ...], passes: bool
) -> None:
    allowed = [ip_network(each) for each in networks]
    if passes:
        check_address(address, allowed)
    else:
        with pytest.raises(TargetRefused):
            check_address(address, allowed)


@pytest.mark.slow
@both_databases
def test_a_cancelled_job_is_announced_in_the_transaction_that_cancels_it(
    client: TestClient, services: Services, body: dict[str, Any], secret: str
) -> None:
    job = client.post("/v1/jobs", json={**body, "webhook": HOOK}).json()
    other = {**HOOK, "events": ["failed"]}
    quiet = client.post("/v1/jobs", json={**body, "webhook": other}).json()
    for each in (job, quiet):
        client.post(f"/v1/jobs/{each['id']}/cancel")
    listed = client.get("/v1/webhooks").json()["data"]
    assert [(each["job_id"], each["type"], each["status"]) for each in listed] == [
        (job["id"], "job.cancelled", "pending")
    ]
    assert client.get("/v1/webhooks", params={"job_id": quiet["id"]}).json()["data"] == []
    with services.database.read() as session:
        sent = json.loads(session.scalars(select(WebhookDelivery.body)).one())
    assert sent["type"] == "job.cancelled"
    assert sent["data"] == client.get(f"/v1/jobs/{job['id']}").json()


def test_a_deleted_job_is_not_told_of(
    client: TestClient, services: Services, body: dict[str, Any], secret: str
) -> None:
    job = client.post("/v1/jobs", json={**body, "webhook": HOOK}).json()
    client.post(f"/v1/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/jobs/{job['id']}").status_code == 204
    assert client.get("/v1/webhooks").json()["data"] == []


def test_a_retry_keeps_the_webhook(
    client: TestClient, services: Services, body: dict[str, Any], secret: str
) -> None:
    job = client.post("/v1/jobs", json={**body, "webhook": HOOK}).json()
    change(services, job["id"], status="failed")
    again = client.post(f"/v1/jobs/{job['id']}/retry").json()
    assert again["spec"]["webhook"] == job["spec"]["webhook"]


def test_networks_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERSOR_WEBHOOK_PRIVATE_NETWORKS", "10.1.0.0/16, ::1/128")
    assert [str(each) for each in WebhookSettings().private_networks] == ["10.1.0.0/16", "::1/128"]
    monkeypatch.setenv("TERSOR_WEBHOOK_PRIVATE_NETWORKS", "10.1.0.0/99")
    get_settings.cache_clear()
    with pytest.raises(InvalidSettings, match="TERSOR_WEBHOOK_PRIVATE_NETWORKS is not valid"):
        get_settings()
    get_settings.cache_clear()
