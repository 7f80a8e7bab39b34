"""Jobs against the real application; a worker's part is written into its database."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

import tersor
from tersor import Client, Event, Job
from tersor.cli.figures import say_place
from tests.tersor.conftest import Server

INT8 = b"int8 model" * 1000


@pytest.fixture
def job(client: Client, model_file: Path, dataset_file: Path) -> Job:
    model = client.models.upload(model_file)
    dataset = client.datasets.upload(dataset_file)
    return client.jobs.submit(
        "ptq", model,
        calibration={"dataset_id": dataset.id, "samples": 8}, evaluation=dataset,
        config={"observer": "minmax"}, labels={"run": "42"}, seed=3,
    )  # fmt: skip


def soon(do: object, *arguments: object, after_s: float = 0.3, **named: object) -> threading.Timer:
    timer = threading.Timer(after_s, do, arguments, named)  # type: ignore[arg-type]
    timer.start()
    return timer


def test_a_submitted_job_holds_what_was_asked_for(client: Client, job: Job) -> None:
    assert (job.status, job.finished, job.method) == ("queued", False, "ptq")
    assert job.spec["config"]["observer"] == "minmax"
    assert job.spec["calibration"]["samples"] == 8
    assert job.spec["seed"] == 3
    assert job.refresh().id == job.id
    assert job.artifacts == ()


def test_jobs_are_found_by_label_status_and_method(client: Client, job: Job) -> None:
    assert job.id in [each.id for each in client.jobs.list(label="run:42", status="queued")]
    assert job.id not in [each.id for each in client.jobs.list(method="convert")]
    assert job.created_at is not None
    assert [each.id for each in client.jobs.list(created_after=job.created_at)][-1:] in (
        [job.id], [],
    )  # fmt: skip


def test_an_unknown_field_is_refused_by_the_service(client: Client, job: Job) -> None:
    with pytest.raises(tersor.Unprocessable) as caught:
        client.jobs.submit("ptq", job.spec["model_id"], colour="red")
    assert [error.pointer for error in caught.value.errors] == ["/colour"]


def test_waiting_returns_the_figures_soon_after_the_job_has_ended(
    server: Server, job: Job, tmp_path: Path
) -> None:
    timer = soon(server.run_job, job.id, {"model.int8.pt": INT8}, tmp_path)
    began = time.monotonic()
    done = job.wait(timeout_s=20)
    timer.join()
    assert time.monotonic() - began < 5
    assert done.status == "succeeded"
    assert done.result is not None
    assert done.result.baseline.latency_ms is not None
    assert done.result.baseline.latency_ms.p50 == 2.0
    [artifact] = done.artifacts
    assert artifact.id == done.result.recommended
    assert artifact.speedup is not None
    assert artifact.speedup.ci95 == (3.9, 4.1)
    assert artifact.quality is not None
    assert artifact.quality.drop == 0.005
    assert done.result.layers[1].reason == "an override keeps it"
    assert done.result.raw["not_known_yet"] == 1


@pytest.mark.slow
def test_waiting_tells_each_event_once_and_every_change(server: Server, job: Job) -> None:
    def work() -> None:
        server.change(job.id, status="running", stage="lift", progress=0.1)
        server.tell(job.id, "stage", "lifting")
        time.sleep(0.5)
        server.tell(job.id, "log", "lifted")
        server.change(job.id, status="cancelled")

    events: list[Event] = []
    changes: list[Job] = []
    timer = soon(work)
    job.wait(20, events.append, on_change=changes.append, raise_on_failure=False)
    timer.join()
    assert [event.message for event in events if event.type != "status"] == ["lifting", "lifted"]
    assert len({event.id for event in events}) == len(events)
    assert changes[0].status == "queued"
    assert changes[-1].status == "cancelled"
    assert "lift" in [change.stage for change in changes]


@pytest.mark.slow
def test_an_event_that_changes_nothing_of_the_job_is_told_soon_and_no_change_with_it(
    server: Server, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tersor.waiting._EVENTS_WAIT_S", 1.0)
    heard: dict[str, float] = {}
    changes: list[Job] = []
    timer = soon(server.tell, job.id, "log", "by the way")
    began = time.monotonic()
    with pytest.raises(tersor.WaitTimeout):
        job.wait(
            2.0, lambda event: heard.setdefault(event.message, time.monotonic() - began),
            on_change=changes.append,
        )  # fmt: skip
    timer.join()
    assert heard["by the way"] < 1.9
    assert len(changes) == 1


def test_a_failed_job_raises_what_the_user_can_do(server: Server, job: Job) -> None:
    error = {"code": "shape_mismatch", "message": "Send [n, 1, 8, 8].", "stage": "lift",
             "retryable": False}  # fmt: skip
    server.change(job.id, status="failed", error=error)
    with pytest.raises(tersor.JobFailed) as caught:
        job.wait()
    assert (caught.value.code, caught.value.stage) == ("shape_mismatch", "lift")
    assert str(caught.value) == "shape_mismatch: Send [n, 1, 8, 8]."
    assert caught.value.job.finished
    assert job.wait(raise_on_failure=False).status == "failed"


@pytest.mark.slow
def test_waiting_ends_when_time_is_up_and_the_job_goes_on(client: Client, job: Job) -> None:
    began = time.monotonic()
    with pytest.raises(tersor.WaitTimeout) as caught:
        job.wait(timeout_s=1.0)
    assert 0.9 < time.monotonic() - began < 4
    assert caught.value.job.status == "queued"
    assert client.jobs.get(job.id).status == "queued"


def test_a_queued_job_is_cancelled_once(job: Job) -> None:
    assert job.cancel().status == "cancelled"
    with pytest.raises(tersor.Conflict) as caught:
        job.cancel()
    assert caught.value.code == "already_finished"
    with pytest.raises(tersor.JobFailed) as failed:
        job.wait()
    assert failed.value.code == "cancelled"


def test_the_recommended_model_is_downloaded_by_default(
    server: Server, job: Job, tmp_path: Path
) -> None:
    files = {"model.int8.pt": INT8, "manifest.json": b"{}"}
    server.run_job(job.id, files, tmp_path)
    [path] = job.refresh().download(tmp_path / "out")
    assert path == tmp_path / "out" / "model.int8.pt"
    assert path.read_bytes() == INT8


def test_every_file_can_be_had_by_name_or_all_at_once(
    client: Client, server: Server, job: Job, tmp_path: Path
) -> None:
    server.run_job(job.id, {"model.int8.pt": INT8, "manifest.json": b"{}"}, tmp_path)
    [manifest] = client.jobs.download(job.id, tmp_path / "one", "manifest.json")
    assert manifest.read_bytes() == b"{}"
    everything = client.jobs.download(job.id, tmp_path / "all", "all")
    assert {path.name for path in everything} == {"model.int8.pt", "manifest.json"}
    assert {each.kind for each in client.jobs.artifacts(job.id)} == {"model", "report"}


def test_downloading_what_is_not_there_says_why(job: Job, tmp_path: Path) -> None:
    with pytest.raises(tersor.ConfigurationError, match="not finished yet"):
        job.download(tmp_path)


class Lossy(httpx.HTTPTransport):
    """The service does what it is asked, but its first answer to a POST never arrives."""

    sent = 0

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        answer = super().handle_request(request)
        self.sent += request.method == "POST"
        if request.method == "POST" and self.sent == 1:
            assert answer.is_success
            answer.close()
            raise httpx.ReadError("cut")
        return answer


@pytest.fixture
def lossy(server: Server) -> Iterator[Client]:
    transport = Lossy()
    with Client(server.url, server.key, transport=transport, sleep=lambda _s: None) as client:
        yield client
    assert transport.sent == 2


def test_a_job_whose_answer_was_lost_is_made_once(lossy: Client, job: Job) -> None:
    made = lossy.jobs.submit(
        "ptq", job.spec["model_id"], calibration=job.spec["calibration"], labels={"lost": "once"}
    )
    assert [each.id for each in lossy.jobs.list(label="lost:once")] == [made.id]


def test_an_upload_whose_answer_was_lost_is_stored_once(lossy: Client, model_file: Path) -> None:
    made = lossy.models.upload(model_file, "sent twice")
    assert [each.id for each in lossy.models.list() if each.name == "sent twice"] == [made.id]


def test_a_retry_whose_answer_was_lost_makes_one_job(
    lossy: Client, client: Client, job: Job
) -> None:
    job.cancel()
    before = {each.id for each in client.jobs.list()}
    again = lossy.jobs.retry(job)
    assert {each.id for each in client.jobs.list()} - before == {again.id}


def test_a_key_of_your_own_returns_the_same_job_from_another_client(
    server: Server, client: Client, job: Job
) -> None:
    def submit(client: Client, seed: int) -> Job:
        return client.jobs.submit(
            "ptq", job.spec["model_id"], calibration=job.spec["calibration"], seed=seed,
            idempotency_key=f"night-run {job.id}",
        )  # fmt: skip

    first = submit(client, 1)
    with Client(server.url, server.key) as another:
        assert submit(another, 1).id == first.id
        with pytest.raises(tersor.Conflict, match="idempotency_conflict"):
            submit(another, 2)


def test_a_finished_job_is_submitted_once_more(client: Client, job: Job) -> None:
    with pytest.raises(tersor.Conflict) as caught:
        client.jobs.retry(job)
    assert caught.value.code == "not_finished"
    job.cancel()
    again = job.retry()
    assert (again.status, again.spec, again.labels) == ("queued", job.spec, job.labels)
    assert again.id not in (job.id, client.jobs.retry(job.id).id)


def test_a_finished_job_is_removed(client: Client, job: Job) -> None:
    with pytest.raises(tersor.Conflict):
        client.jobs.delete(job.id)
    job.cancel()
    client.jobs.delete(job.id)
    with pytest.raises(tersor.NotFound):
        job.refresh()


@pytest.mark.slow
def test_a_preflight_without_a_worker_comes_back_unfinished(client: Client, job: Job) -> None:
    found = client.preflight(
        "ptq", job.spec["model_id"], calibration=job.spec["calibration"], timeout_s=0.3
    )
    assert (found.finished, found.ok) == (False, None)
    assert found.queue_length is not None


def test_methods_and_their_schemas(client: Client) -> None:
    methods = {method.name: method for method in client.methods()}
    assert methods["ptq"].defaults["observer"] == "histogram"
    assert "observer" in client.method_schema("ptq")["properties"]


def test_the_system_tells_its_version(client: Client) -> None:
    system = client.system()
    assert system.version == tersor.__version__
    assert "cpu" in system.queues


def test_keys_and_projects(client: Client, server: Server) -> None:
    made = client.keys.create("reader", scopes=("read",))
    assert made.key is not None
    assert made.key not in repr(made)
    with Client(server.url, made.key) as reader:
        list(reader.models.list())
        with pytest.raises(tersor.Forbidden):
            reader.keys.revoke(made.id)
        client.keys.revoke(made.id)
        with pytest.raises(tersor.Unauthorized):
            list(reader.models.list())
    project = client.projects.create("another")
    assert project.id in [each.id for each in client.projects.list()]
    assert project.limits["stored_bytes"] is None
    other = client.keys.create(project_id=project.id)
    with Client(server.url, other.key) as stranger:
        assert list(stranger.models.list()) == []


def test_a_place_beyond_what_the_service_counts_is_not_told_as_exact() -> None:
    assert [say_place(each) for each in (None, 1, 999, 1000)] == [
        "", "number 1 in line", "number 999 in line", "number 1000 or later in line",
    ]  # fmt: skip
