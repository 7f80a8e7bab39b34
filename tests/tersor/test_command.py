"""The command against the real application: output, exit status, one-line errors."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tersor import Client, Job
from tests.tersor.conftest import Command, Server


@pytest.fixture
def job(client: Client, model_file: Path, dataset_file: Path) -> Job:
    model = client.models.upload(model_file)
    dataset = client.datasets.upload(dataset_file)
    return client.jobs.submit("ptq", model, calibration=dataset, labels={"by": "test"})


def process(server: Server, *arguments: str, **more: Any) -> subprocess.Popen[str]:
    environment = {**os.environ, "TERSOR_URL": server.url, "TERSOR_API_KEY": server.key}
    # what was started in the background, as by a shell, ignores SIGINT, and its children with it
    signals = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.Popen(
        [sys.executable, "-m", "tersor", *arguments], env=environment, text=True,
        preexec_fn=signals, **more,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "suffix"), [("models", "model_file"), ("datasets", "dataset_file")]
)
def test_files_are_uploaded_listed_shown_saved_and_deleted(
    tersor: Command, kind: str, suffix: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    file: Path = request.getfixturevalue(suffix)
    made = tersor.json(kind, "upload", file, "--name", "mine", "--label", "a=b=c")
    assert made["name"] == "mine"
    assert made["labels"] == {"a": "b=c"}
    assert made["id"] in tersor(kind, "list").stdout
    assert made in tersor.json(kind, "list")
    assert tersor.json(kind, "get", made["id"]) == made
    assert made["sha256"] in tersor(kind, "get", made["id"]).stdout
    saved = tersor.json(kind, "download", made["id"], "-o", tmp_path / "back")
    assert saved == [{"path": str(tmp_path / "back"), "size_bytes": file.stat().st_size}]
    assert (tmp_path / "back").read_bytes() == file.read_bytes()
    assert tersor.json(kind, "delete", made["id"]) == {"deleted": made["id"]}
    assert "not_found" in tersor(kind, "get", made["id"], status=3).stderr


def test_submit_uploads_files_once_and_passes_every_option(
    tersor: Command, model_file: Path, dataset_file: Path
) -> None:
    job = tersor.json(
        "submit", "ptq", "--model", model_file, "--calibration", dataset_file,
        "--evaluation", dataset_file, "--metric", "top5", "--samples", "7", "--batch-size", "3",
        "--set", "observer=minmax", "--override", "fc=fp32", "--override", "conv*=int8",
        "--label", "run=42", "--seed", "5", "--priority", "2", "--timeout-s", "60",
        "--max-drop", "0.05", "--device", "cpu", "--format", "torchscript",
    )  # fmt: skip
    spec = job["spec"]
    assert spec["config"]["observer"] == "minmax"
    assert spec["config"]["overrides"] == {"fc": "fp32", "conv*": "int8"}
    assert (spec["calibration"]["samples"], spec["calibration"]["batch_size"]) == (7, 3)
    assert spec["calibration"]["dataset_id"] == spec["evaluation"]["dataset_id"]
    assert (spec["evaluation"]["metric"], spec["seed"], spec["priority"]) == ("top5", 5, 2)
    assert (spec["timeout_s"], spec["max_accuracy_drop"]) == (60, 0.05)
    assert job["labels"] == {"run": "42"}
    assert job["id"] in tersor("jobs", "list", "--label", "run=42", "--status", "queued").stdout


def test_json_is_all_that_standard_output_holds(tersor: Command, job: Job) -> None:
    for arguments in (
        ["jobs", "list"], ["jobs", "get", job.id], ["jobs", "events", job.id], ["methods"],
        ["methods", "ptq"], ["system"], ["keys", "list"], ["projects", "list"], ["models", "list"],
        ["projects", "show"], ["audit"],
    ):  # fmt: skip
        assert tersor.json(*arguments)
        assert json.loads(tersor("--json", *arguments).stdout)


def test_a_watched_job_that_succeeds_ends_with_its_table(
    tersor: Command, server: Server, job: Job, tmp_path: Path
) -> None:
    server.run_job(job.id, {"model.int8.pt": b"x" * 1000, "manifest.json": b"{}"}, tmp_path)
    done = tersor("watch", job.id)
    lines = done.stdout.splitlines()
    assert lines[0] == f"{job.id} succeeded"
    assert lines[2].split() == ["original", "3.9", "KiB", "-", "2", "-", "0.9900", "-", "-"]
    assert lines[3].split() == [
        "*", "model.int8.pt", "1000", "B", "3.90x", "0.5", "4.00x", "(3.90-4.10)", "0.9850",
        "+0.0050", "faster",
    ]  # fmt: skip
    assert "fc stayed fp32: an override keeps it" in done.stdout
    assert tersor.json("watch", job.id)["status"] == "succeeded"
    assert "recommended" in tersor("jobs", "get", job.id).stdout
    saved = tersor.json("download", job.id, "-o", tmp_path / "out")
    assert [Path(each["path"]).name for each in saved] == ["model.int8.pt"]
    everything = tersor.json("download", job.id, "-o", tmp_path / "out", "--artifact", "all")
    assert len(everything) == 2


def test_a_watched_job_that_fails_ends_with_status_1_and_its_reason(
    tersor: Command, server: Server, job: Job
) -> None:
    error = {"code": "shape_mismatch", "message": "Send [n, 1, 8, 8].", "stage": "lift",
             "retryable": False}  # fmt: skip
    server.change(job.id, status="failed", error=error)
    done = tersor("watch", job.id, status=1)
    assert "shape_mismatch: Send [n, 1, 8, 8]." in done.stderr
    assert tersor.json("watch", job.id, status=1)["error"]["code"] == "shape_mismatch"


def test_a_cancelled_job_is_no_success(tersor: Command, job: Job) -> None:
    assert tersor.json("jobs", "cancel", job.id)["status"] == "cancelled"
    tersor("watch", job.id, status=1)
    assert "already_finished" in tersor("jobs", "cancel", job.id, status=3).stderr
    tersor("jobs", "delete", job.id)
    tersor("jobs", "get", job.id, status=3)


def test_a_job_that_may_succeed_once_more_is_submitted_once_more(
    tersor: Command, server: Server, job: Job
) -> None:
    assert "not_finished" in tersor("retry", job.id, status=3).stderr
    error = {"code": "worker_lost", "message": "Its worker died.", "stage": None,
             "retryable": True}  # fmt: skip
    server.change(job.id, status="failed", error=error)
    assert f"tersor retry {job.id}" in tersor("watch", job.id, status=1).stderr
    again = tersor.json("retry", job.id)
    assert again["id"] != job.id
    assert (again["status"], again["spec"]) == ("queued", job.spec)
    assert "watch it" in tersor("retry", job.id).stdout


@pytest.mark.slow
def test_ctrl_c_while_watching_leaves_the_job_running_and_says_so(
    server: Server, client: Client, job: Job
) -> None:
    watching = process(server, "watch", job.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert watching.stderr is not None
    assert "queued" in watching.stderr.readline()
    time.sleep(0.3)
    watching.send_signal(signal.SIGINT)
    _, error = watching.communicate(timeout=20)
    assert watching.returncode == 130
    assert f"{job.id} goes on" in error
    assert "Traceback" not in error
    assert client.jobs.get(job.id).status == "queued"


@pytest.mark.slow
def test_on_a_terminal_a_bar_shows_stage_and_message(
    server: Server, job: Job, tmp_path: Path
) -> None:
    server.change(job.id, status="running", stage="calibrate", progress=0.42, eta_seconds=12.0,
                  message="calibrating 108/256")  # fmt: skip
    leader, follower = pty.openpty()
    watching = process(server, "watch", job.id, stdout=follower, stderr=follower, stdin=follower)
    os.close(follower)
    shown = b""
    ended = False
    while True:
        try:
            chunk = os.read(leader, 65536)
        except OSError:  # how Linux says that the other side is closed
            break
        if not chunk:
            break
        shown += chunk
        if b"12 s left" in shown and not ended:
            server.run_job(job.id, {"m.int8.pt": b"x"}, tmp_path)
            ended = True
    os.close(leader)
    assert watching.wait(20) == 0
    text = shown.decode()
    assert "calibrate" in text
    assert "42%" in text
    assert "12 s left" in text
    assert "recommended" in text


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["submit", "ptq", "--model", "absent.pt"], "neither a file nor an id"),
        (["submit", "ptq", "--model", "dst_123"], "neither a file nor an id"),
        (["submit", "ptq", "--model", "mdl_1", "--set", "observer"], "key=value"),
        (["submit", "ptq", "--model", "mdl_1", "--samples", "3"], "--calibration"),
        (["submit", "ptq", "--model", "mdl_1", "--metric", "top1"], "--evaluation"),
        (["models", "upload", "absent.pt"], "absent.pt"),
        (["models", "list", "--limit", "0"], "limit"),
        (["nonsense"], "nonsense"),
        (["models", "list", "--url", "nowhere"], "no address"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(arguments: list[str], text: str) -> None:
    assert text in Command()(*arguments, status=2).stderr


def test_bad_json_for_inputs_is_wrong_usage(model_file: Path) -> None:
    assert "not JSON" in Command()("models", "upload", model_file, "--inputs", "{", status=2).stderr


def test_a_refusal_is_status_3_and_one_line_with_its_code(tersor: Command, tmp_path: Path) -> None:
    path = tmp_path / "no.pt"
    path.write_bytes(b"rubbish")
    done = tersor("models", "upload", path, status=3)
    assert done.stderr.startswith("not_a_zip: ")
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1


def test_a_missing_key_is_status_3_with_a_hint(server: Server) -> None:
    done = Command()("models", "list", "--url", server.url, status=3)
    assert done.stderr.startswith("unauthorized: ")
    assert "TERSOR_API_KEY" in done.stderr


def test_no_service_is_status_4_and_says_how_to_start_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tersor.transport._backoff_s", lambda _tries: 0.0)
    done = Command()("models", "list", "--url", "http://127.0.0.1:1", status=4)
    assert done.stderr.startswith("cannot_connect: ")
    assert "tersor up" in done.stderr
    assert "Traceback" not in done.output


def test_keys_and_projects(tersor: Command) -> None:
    made = tersor.json("keys", "create", "--name", "ci", "--scope", "read")
    assert made["key"].startswith("tsr_")
    listed = tersor("keys", "list").stdout
    assert made["id"] in listed
    assert made["key"] not in listed
    assert tersor.json("keys", "revoke", made["id"]) == {"revoked": made["id"]}
    project = tersor.json("projects", "create", "team-of-the-command")
    assert project["id"] in tersor("projects", "list").stdout
    other = tersor("keys", "create", "--project", project["id"]).stdout
    assert "shown once" in other


def test_methods_show_their_defaults(tersor: Command) -> None:
    text = tersor("methods").stdout
    assert "observer [histogram]" in text
    assert "properties" in tersor.json("methods", "ptq")


def test_a_preflight_of_an_unknown_model_is_refused(tersor: Command, job: Job) -> None:
    data = job.spec["calibration"]["dataset_id"]
    done = tersor("preflight", "ptq", "--model", "mdl_" + "0" * 26, "--calibration", data, status=3)
    assert "model_not_found" in done.stderr


def test_every_command_tells_about_its_options() -> None:
    for command in ("up", "submit", "preflight", "watch", "download", "methods", "system"):
        text = Command()(command, "--help").stdout
        assert "--json" in text or command == "up"
    assert "0.1.0" in Command()("--version").stdout


def test_up_says_what_hinders_it(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = Command()("up", "--data-dir", tmp_path / "file" / "below", status=1)
    assert "cannot start" in done.stderr
