"""`tersor submit`, `preflight`, `watch`, `download` and `tersor jobs …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.bodies import (
    Backend,
    BatchSize,
    Calibration,
    Device,
    Evaluation,
    Formats,
    JobLabels,
    MaxDrop,
    Method,
    Metric,
    ModelOption,
    Overrides,
    Samples,
    Settings,
    Student,
    Training,
    job_arguments,
)
from tersor.cli.figures import NOTHING, age, job_line, print_result, size
from tersor.cli.files import Limit, pairs
from tersor.cli.session import Session, command, print_table
from tersor.cli.watching import byte_progress, follow, say_saved
from tersor.jobs import Job
from tersor.views import Preflight

root = typer.Typer()
jobs = typer.Typer(help="Look at jobs, cancel and remove them.", no_args_is_help=True)

Wait = Annotated[bool, typer.Option("--wait", help="Watch it to its end.")]


@command(root, "submit")
def submit(
    session: Session,
    method: Method,
    model: ModelOption,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    training: Training = None,
    student: Student = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    metric: Metric = None,
    set_: Settings = None,
    override: Overrides = None,
    format_: Formats = None,
    backend: Backend = None,
    device: Device = None,
    max_drop: MaxDrop = None,
    seed: Annotated[int | None, typer.Option(help="Seeds every random choice.")] = None,
    priority: Annotated[int | None, typer.Option(help="Higher runs first.")] = None,
    timeout: Annotated[int | None, typer.Option("--timeout-s", min=1, help="Limit.")] = None,
    label: JobLabels = None,
    webhook: Annotated[
        str | None, typer.Option(metavar="URL", help="Address to tell when the job has ended.")
    ] = None,
    wait: Wait = False,
) -> None:
    """Submit a job; files given instead of ids are uploaded first."""
    body = job_arguments(
        session, model, calibration, evaluation, training, student, samples, batch_size, metric,
        set_, override,
        formats=format_ or None, backend=backend, device=device, max_accuracy_drop=max_drop,
        seed=seed, priority=priority, timeout_s=timeout, labels=pairs(label, "--label") or None,
        webhook={"url": webhook} if webhook else None,
    )  # fmt: skip
    _show_new(session, session.client.jobs.submit(method, **body), wait=wait)


@command(root, "retry")
def retry(session: Session, job_id: str, wait: Wait = False) -> None:
    """Submit a finished job once more: a new job, with the same spec."""
    _show_new(session, session.client.jobs.retry(job_id), wait=wait)


@command(root, "preflight")
def preflight(
    session: Session,
    method: Method,
    model: ModelOption,
    calibration: Calibration = None,
    evaluation: Evaluation = None,
    training: Training = None,
    student: Student = None,
    samples: Samples = None,
    batch_size: BatchSize = None,
    metric: Metric = None,
    set_: Settings = None,
    override: Overrides = None,
    format_: Formats = None,
    backend: Backend = None,
    device: Device = None,
) -> None:
    """Ask, without a job, whether a job could run and what it would compress. Exit 1: no."""
    body = job_arguments(
        session, model, calibration, evaluation, training, student, samples, batch_size, metric,
        set_, override,
        formats=format_ or None, backend=backend, device=device,
    )  # fmt: skip
    found = session.client.preflight(method, **body)
    session.show(found.raw, lambda: _print_preflight(found))
    if not found.ok:
        raise typer.Exit(1)


@command(root, "watch")
def watch(session: Session, job_id: str) -> None:
    """Follow a job to its end. Ctrl-C leaves it running. Exit 1: it failed or was cancelled."""
    follow(session, session.client.jobs.get(job_id))


@command(root, "download")
def download(
    session: Session,
    job_id: str,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder.")] = Path(),
    artifact: Annotated[
        str | None,
        typer.Option(help='Id or name; "all" for every file. Default: the recommended model.'),
    ] = None,
) -> None:
    """Save what a job made, verified against its SHA-256."""
    with byte_progress(session, Path(artifact or job_id)) as progress:
        paths = session.client.jobs.download(job_id, output, artifact, progress=progress)
    say_saved(session, paths)


@command(jobs, "list")
def list_jobs(
    session: Session,
    limit: Limit = 20,
    status: Annotated[str | None, typer.Option(help="queued, running, succeeded, ...")] = None,
    method: Annotated[str | None, typer.Option(help="ptq, qat, distill, mixed, convert")] = None,
    label: Annotated[str | None, typer.Option(help="key=value")] = None,
) -> None:
    """List jobs, newest first."""
    wanted = pairs([label] if label else None, "--label")
    filter_ = next((f"{key}:{value}" for key, value in wanted.items()), None)
    found = list(session.client.jobs.list(limit, status=status, method=method, label=filter_))
    rows = [
        [
            job.id, job.method, job.status, job.stage or NOTHING, f"{job.progress:.0%}",
            age(job.created_at), ",".join(f"{key}={value}" for key, value in job.labels.items()),
        ]
        for job in found
    ]  # fmt: skip
    columns = ["id", "method", "status", "stage", "done", "age", "labels"]
    session.show_table([job.raw for job in found], columns, rows)


@command(jobs, "get")
def get_job(session: Session, job_id: str) -> None:
    """Look at one job, with its figures once it has succeeded."""
    job = session.client.jobs.get(job_id)

    def render() -> None:
        typer.echo(job_line(job))
        if job.result is not None:
            print_result(job.result)

    session.show(job.raw, render)


@command(jobs, "cancel")
def cancel_job(session: Session, job_id: str) -> None:
    """Cancel a job: at once if it is queued, within seconds if it runs."""
    job = session.client.jobs.cancel(job_id)
    session.show(job.raw, lambda: typer.echo(f"{job.id} {job.status}, cancel requested"))


@command(jobs, "delete")
def delete_job(session: Session, job_id: str) -> None:
    """Remove a finished job, its events and its artifacts."""
    session.client.jobs.delete(job_id)
    session.show({"deleted": job_id}, lambda: typer.echo(f"{job_id} deleted"))


@command(jobs, "events")
def list_events(session: Session, job_id: str) -> None:
    """List what happened to a job, oldest first."""
    found = list(session.client.jobs.events(job_id))
    rows = [
        [
            event.created_at.strftime("%H:%M:%S.%f")[:-3] if event.created_at else NOTHING,
            event.level, event.type, event.message,
        ]
        for event in found
    ]  # fmt: skip
    session.show_table([event.raw for event in found], ["utc", "level", "type", "message"], rows)


def _show_new(session: Session, job: Job, *, wait: bool) -> None:
    if not wait:
        session.show(job.raw, lambda: typer.echo(f"{job.id}\nwatch it: tersor watch {job.id}"))
        return
    if not session.json:
        typer.echo(f"{job.id} submitted", err=True)
    follow(session, job)


def _print_preflight(found: Preflight) -> None:
    if not found.finished:
        typer.echo(f"{found.id} is not known yet ({found.status}); is a worker running?")
        return
    if found.error is not None:
        typer.secho(f"{found.error.code}: {found.error.message}", fg="red", err=True)
        return
    result = found.result or {}
    rows = [
        [
            str(layer.get("name")), str(layer.get("type")), str(layer.get("precision")),
            layer.get("reason") or "",
        ]
        for layer in result.get("layers") or ()
    ]  # fmt: skip
    if rows:
        print_table(["layer", "type", "becomes", "why not int8"], rows)
    for island in result.get("islands") or ():
        typer.echo(f"stays as it is: {island.get('name')}: {island.get('reason')}")
    for guard in result.get("guards") or ():
        typer.echo(f"the compressed file will hold only where {guard}")
    for name in result.get("methods_dropped") or ():
        typer.echo(f"the compressed file will not have the method {name}")
    estimate = size(result.get("estimated_size_bytes"))
    typer.echo(
        f"this job can run; {size(result.get('size_bytes'))} should become about {estimate}; "
        f"jobs waiting: {found.queue_length}"
    )
