"""Jobs: submit, look, wait, cancel, and fetch what they made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from tersor.downloads import download, safe_file_name
from tersor.errors import ConfigurationError, JobFailed
from tersor.parsing import View, parse
from tersor.spec import Data, job_body
from tersor.transport import Transport, path_of
from tersor.uploads import Progress
from tersor.views import Artifact, Dataset, Event, JobError, Model, Result
from tersor.waiting import OnEvent, Waiter


@dataclass(frozen=True, kw_only=True)
class Job(View):
    """A job as it was when last looked at; methods that look again return a new one.

    `finished` alone tells whether it is over; `status` is then succeeded, failed or cancelled.
    """

    id: str
    method: str = ""
    status: str = "queued"
    finished: bool = False
    stage: str | None = None
    progress: float = 0.0
    message: str = ""
    eta_seconds: float | None = None
    attempt: int = 0
    queue_position: int | None = None
    cancel_requested_at: datetime | None = None
    created_at: datetime | None = None
    started_at: datetime | None = None
    finished_at: datetime | None = None
    error: JobError | None = None
    result: Result | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    _jobs: Jobs = field(repr=False, compare=False)

    @property
    def artifacts(self) -> tuple[Artifact, ...]:
        """The compressed models with their figures; empty until the job has succeeded."""
        return self.result.artifacts if self.result is not None else ()

    def refresh(self) -> Job:
        """Look again."""
        return self._jobs.get(self.id)

    def wait(
        self,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        *,
        on_change: Callable[[Job], None] | None = None,
        raise_on_failure: bool = True,
    ) -> Job:
        """Wait until the job is finished and return it; see `Jobs.wait`."""
        return self._jobs.wait(
            self, timeout_s, on_event, on_change=on_change, raise_on_failure=raise_on_failure
        )

    def cancel(self) -> Job:
        """Ask for an end; a running job is dead within seconds."""
        return self._jobs.cancel(self.id)

    def retry(self) -> Job:
        """Submit it once more, when it is finished, and return the new job."""
        return self._jobs.retry(self)

    def events(self) -> Iterator[Event]:
        """Yield what has happened so far, oldest first."""
        return self._jobs.events(self.id)

    def download(
        self,
        folder: Path | str,
        artifact: str | Artifact | None = None,
        *,
        progress: Progress | None = None,
    ) -> tuple[Path, ...]:
        """Save artifacts into a folder; see `Jobs.download`."""
        return self._jobs.download(self, folder, artifact, progress=progress)


class Jobs:
    """The project's jobs; `client.jobs`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def submit(
        self,
        method: str,
        model_id: str | Model,
        *,
        calibration: Data = None,
        evaluation: Data = None,
        training: Dataset | str | None = None,
        student: Model | str | None = None,
        config: Mapping[str, Any] | None = None,
        labels: Mapping[str, str] | None = None,
        idempotency_key: str | None = None,
        **fields: Any,
    ) -> Job:
        """Submit a job, once, even if answers get lost and it has to be sent again.

        Args:
            method: `ptq`, `qat`, `distill`, `mixed`, `convert`; `client.methods()` lists what the
                service offers.
            model_id: Model, or its id; of a distillation the teacher.
            calibration: Dataset, its id, or `{"dataset_id": …, "samples": 256, "batch_size": 32}`.
            evaluation: Dataset, its id, or `{"dataset_id": …, "metric": "top1"}`.
            training: Dataset to learn from, or its id; for `qat` and `distill`.
            student: Model that a distillation trains, or its id; goes into `config`.
            config: Settings of the method.
            labels: Free key-value pairs to find the job by.
            idempotency_key: Of your making, for one who may have to submit again in another
                process: within a day the same key and arguments return the same job.
            fields: Everything else of the job's body: formats, backend, device, max_accuracy_drop,
                seed, priority, timeout_s, webhook.

        Raises:
            Conflict: `idempotency_conflict`, the key came with other arguments before.
        """
        body = job_body(
            method, model_id, calibration=calibration, evaluation=evaluation, training=training,
            student=student, config=config, labels=labels, **fields,
        )  # fmt: skip
        return self._job(self._transport.create("/v1/jobs", body, key=idempotency_key).json())

    def retry(self, job: Job | str) -> Job:
        """Submit a finished job once more and return the new one, which has the same spec.

        Raises:
            Conflict: `not_finished`.
        """
        job_id = job if isinstance(job, str) else job.id
        return self._job(self._transport.create(path_of("jobs", job_id, "retry")).json())

    def list(
        self,
        limit: int | None = None,
        *,
        status: str | None = None,
        method: str | None = None,
        created_after: datetime | None = None,
        label: str | None = None,
    ) -> Iterator[Job]:
        """Yield jobs, newest first; `label` is `key:value`."""
        params = {
            "status": status,
            "method": method,
            "created_after": created_after.isoformat() if created_after else None,
            "label": label,
        }
        for item in self._transport.pages("/v1/jobs", params, limit):
            yield self._job(item)

    def get(self, job_id: str) -> Job:
        """Look at one job."""
        return self._job(self._transport.get(path_of("jobs", job_id)).json())

    def wait(
        self,
        job: Job | str,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        *,
        on_change: Callable[[Job], None] | None = None,
        raise_on_failure: bool = True,
    ) -> Job:
        """Wait until the job is finished and return it. A restart of the service is sat out.

        Args:
            job: Job, or its id.
            timeout_s: Longest wait; None for as long as it takes.
            on_event: Called once with each event, oldest first.
            on_change: Called with the job whenever it has changed.
            raise_on_failure: Whether a job that failed or was cancelled raises.

        Raises:
            JobFailed: It failed or was cancelled.
            WaitTimeout: Time is up; the job goes on.
            TransportError: The service was away for two minutes.
        """
        waiter = Waiter(self._transport, self._job, self.events)
        job_id = job if isinstance(job, str) else job.id
        ended = waiter.wait(job_id, timeout_s, on_event, on_change)
        if raise_on_failure and ended.status != "succeeded":
            raise _failure(ended)
        return ended

    def cancel(self, job_id: str) -> Job:
        """Ask for an end. Raises Conflict `already_finished` if there is nothing to end."""
        answer = self._transport.post(path_of("jobs", job_id, "cancel"), repeatable=True)
        return self._job(answer.json())

    def delete(self, job_id: str) -> None:
        """Remove a finished job, its events and its artifacts."""
        self._transport.delete(path_of("jobs", job_id))

    def events(self, job_id: str, after: int | str | None = None) -> Iterator[Event]:
        """Yield the job's events so far, oldest first, those after the id `after`."""
        while True:
            page = self._transport.get(
                path_of("jobs", job_id, "events"), {"limit": 200, "after": after}
            ).json()
            for item in page["data"]:
                yield parse(Event, item)
            after = page.get("next_after")
            if not page["has_more"] or after is None:
                return

    def artifacts(self, job_id: str) -> tuple[Artifact, ...]:
        """Return all files that the job made: models, manifest and reports."""
        page = self._transport.get(path_of("jobs", job_id, "artifacts")).json()
        return tuple(parse(Artifact, item) for item in page["data"])

    def download(
        self,
        job: Job | str,
        folder: Path | str,
        artifact: str | Artifact | None = None,
        *,
        progress: Progress | None = None,
    ) -> tuple[Path, ...]:
        """Save artifacts into a folder, verified against their SHA-256, and return the files.

        Args:
            job: Job, or its id.
            folder: Made if it is not there.
            artifact: An artifact, its id or its name; `"all"` for every file, manifest and
                reports too; None for the recommended one, or all models if none is.
            progress: Called with bytes done and bytes in all, file by file.

        Raises:
            ConfigurationError: The job has made no such artifact.
            DigestMismatch: What arrived is not the file.
        """
        job = self.get(job) if isinstance(job, str) else job
        chosen = self._choose(job, artifact)
        return tuple(
            download(
                self._transport,
                path_of("artifacts", each.id, "content"),
                Path(folder) / safe_file_name(each.name, each.id),
                sha256=each.sha256,
                size_bytes=each.size_bytes,
                progress=progress,
            )
            for each in chosen
        )

    def _choose(self, job: Job, artifact: str | Artifact | None) -> tuple[Artifact, ...]:
        if isinstance(artifact, Artifact):
            return (artifact,)
        if artifact is None:
            recommended = job.result.recommended if job.result is not None else None
            chosen = tuple(each for each in job.artifacts if each.id == recommended)
            chosen = chosen or job.artifacts
        else:
            everything = self.artifacts(job.id)
            chosen = tuple(each for each in everything if artifact in ("all", each.id, each.name))
        if not chosen:
            state = "" if job.finished else "; it is not finished yet"
            raise ConfigurationError(
                f"{job.id} has no artifact{f' {artifact!r}' if artifact else ''} to "
                f"download ({job.status}{state}).",
                code="artifact_not_found",
            )
        return chosen

    def _job(self, data: Mapping[str, Any]) -> Job:
        return parse(Job, data, _jobs=self)


def _failure(job: Job) -> JobFailed:
    error = job.error
    if error is None:
        return JobFailed(
            f"{job.id} was {job.status}.",
            code=job.status, stage=job.stage, retryable=False, job=job,
        )  # fmt: skip
    return JobFailed(
        error.message, code=error.code, stage=error.stage, retryable=error.retryable, job=job
    )
