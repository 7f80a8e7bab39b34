"""Limits, keys that expire, webhooks and the audit log, in Python and by the command."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tersor import Client, Project, Unauthorized, Unprocessable
from tests.tersor.conftest import Command, Server


@pytest.fixture
def project(client: Client) -> Project:
    return client.projects.create(f"bound-{uuid4()}", unfinished_jobs=3, expires_after_s=86400)


def test_a_project_is_made_with_bounds_that_change_one_by_one(
    client: Client, project: Project
) -> None:
    none_else = {"stored_bytes": None, "requests_per_s": None}
    assert project.limits == {"unfinished_jobs": 3, **none_else}
    assert project.expires_after_s == 86400
    changed = client.projects.change(project.id, stored_bytes=10**9, unfinished_jobs=None)
    assert changed.limits == {
        "stored_bytes": 10**9, "unfinished_jobs": None, "requests_per_s": None,
    }  # fmt: skip
    assert changed.expires_after_s == 86400
    assert client.projects.change(project.id, expires_after_s=None).expires_after_s is None
    found = client.projects.get(project.id)
    assert found.limits == changed.limits
    assert found.usage == {"stored_bytes": 0, "unfinished_jobs": 0}


def test_an_unknown_bound_is_refused_by_the_service(client: Client, project: Project) -> None:
    with pytest.raises(Unprocessable) as caught:
        client.projects.change(project.id, colours=3)
    assert [error.pointer for error in caught.value.errors] == ["/limits/colours"]


def test_a_project_is_shown_and_bound_by_the_command(
    tersor: Command, project: Project, client: Client, model_file: Path
) -> None:
    tersor(
        "projects", "limits", project.id, "--stored-bytes", "2097152", "--unfinished-jobs", "none",
        "--requests-per-s", "100", "--expires-after-s", "3600",
    )  # fmt: skip
    key = client.keys.create(project_id=project.id).key
    assert key is not None
    tersor("models", "upload", model_file, "--api-key", key)
    lines = tersor("projects", "show", "--api-key", key).stdout.splitlines()
    assert lines[0] == f"{project.id}  {project.name}"
    used = f"{model_file.stat().st_size / 1024:.1f} KiB"
    assert [line.strip() for line in lines[1:]] == [
        f"stored_bytes     at most 2.0 MiB, {used} now",
        "unfinished_jobs  no limit, 0 now",
        "requests_per_s   at most 100",
        "kept             3600 s",
    ]
    shown = tersor.json("projects", "show", project.id)
    assert shown["limits"]["requests_per_s"] == 100
    made = tersor.json("projects", "create", f"made-{uuid4()}", "--unfinished-jobs", "0")
    assert made["limits"]["unfinished_jobs"] == 0


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["projects", "limits", "prj_1"], "name a limit"),
        (["projects", "limits", "prj_1", "--stored-bytes", "1GB"], "--stored-bytes"),
        (["projects", "limits", "prj_1", "--requests-per-s", "-1"], "--requests-per-s"),
        (["keys", "create", "--expires-at", "soon"], "no time"),
    ],
)
def test_a_bound_that_cannot_be_read_is_wrong_usage(arguments: list[str], text: str) -> None:
    assert text in Command()(*arguments, status=2).stderr


@pytest.mark.slow
def test_a_key_stops_to_work_when_it_said(server: Server, client: Client) -> None:
    until = datetime.now(UTC) + timedelta(seconds=2.5)
    made = client.keys.create("brief", expires_at=until)
    assert made.expires_at is not None
    assert abs(made.expires_at - until) < timedelta(milliseconds=1)
    with Client(server.url, made.key) as brief:
        [newest] = brief.keys.list(1)
        assert newest.expires_at == made.expires_at
        time.sleep(max(0.0, (until - datetime.now(UTC)).total_seconds()))
        with pytest.raises(Unauthorized):
            next(brief.keys.list(1))
    client.keys.revoke(made.id)


def test_the_command_makes_keys_that_expire_and_lists_until_when(tersor: Command) -> None:
    made = tersor.json("keys", "create", "--expires-at", "2099-01-31T12:00:00+02:00")
    assert datetime.fromisoformat(made["expires_at"]) == datetime(2099, 1, 31, 10, tzinfo=UTC)
    assert "2099-01-31 10:00:00" in tersor("keys", "list").stdout
    local = tersor.json("keys", "create", "--expires-at", "2099-01-31")["expires_at"]
    assert datetime.fromisoformat(local) == datetime(2099, 1, 31).astimezone()
    text = tersor("keys", "create", "--expires-at", "2099-01-31T12:00:00Z").stdout
    assert "until 2099-01-31 12:00:00" in text


def test_the_audit_log_tells_who_did_what(tersor: Command, client: Client) -> None:
    made = client.keys.create("noted")
    assert made.key is not None
    project = client.projects.create(f"noted-{uuid4()}")
    event = next(client.audit.list(project_id=project.id))
    assert (event.action, event.subject_id) == ("project.create", project.id)
    assert event.created_at is not None
    with Client(client.url, made.key) as other:
        of_other = other.keys.create("by the noted")
    [event] = client.audit.list(key_id=made.id)
    assert (event.action, event.subject_id, event.key_id) == ("key.create", of_other.id, made.id)
    [line] = tersor("audit", "--key", made.id).stdout.splitlines()[1:]
    assert line.split()[2:5] == ["key.create", of_other.id, made.id]
    assert tersor.json("audit", "--project", project.id)[0]["subject_id"] == project.id
    assert "forbidden" in tersor("audit", "--api-key", made.key, status=3).stderr


def test_webhooks_from_the_secret_to_what_became_of_a_message(
    tersor: Command, client: Client, model_file: Path, dataset_file: Path
) -> None:
    submit = ["submit", "ptq", "--model", str(model_file), "--calibration", str(dataset_file)]
    submit += ["--webhook", "https://example.com/x"]
    refused = tersor(*submit, status=3)
    assert "\nwebhook_secret_missing: " in refused.stderr
    assert "tersor webhooks secret" in refused.stderr
    assert tersor("webhooks", "secret").stdout.startswith("whsec_")
    made = client.webhooks.renew_secret()
    assert made.secret.startswith("whsec_")
    assert made.secret not in repr(made)
    told = tersor.json(*submit)
    assert told["spec"]["webhook"]["url"] == "https://example.com/x"
    client.jobs.cancel(told["id"])
    [delivery] = client.webhooks.list(job_id=told["id"])
    assert (delivery.type, delivery.status, delivery.attempts) == ("job.cancelled", "pending", 0)
    assert delivery.id in tersor("webhooks", "list", "--job", told["id"]).stdout
