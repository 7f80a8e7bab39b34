"""Follows a job until it ends: a progress bar on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import typer

from tersor.cli.figures import job_line, print_result, say_place, size
from tersor.cli.session import INTERRUPTED, JOB_FAILED, Session
from tersor.cli.training import TrainingLine, is_between_epochs
from tersor.jobs import Job
from tersor.upload_notes import UploadNote
from tersor.views import Event

Tell = Callable[[Job], None]


def follow(session: Session, job: Job) -> None:
    """Watch the job to its end, then print the result. Ctrl-C leaves the job running.

    Raises:
        typer.Exit: The job failed or was cancelled, or the watching was interrupted.
    """
    try:
        with _progress(session) as (on_change, on_event):
            job = job.wait(on_change=on_change, on_event=on_event, raise_on_failure=False)
    except KeyboardInterrupt:
        typer.echo(
            f"\n{job.id} goes on. Watch it again: tersor watch {job.id}; "
            f"end it: tersor jobs cancel {job.id}",
            err=True,
        )
        raise typer.Exit(INTERRUPTED) from None
    session.show(job.raw, lambda: _print_end(job))
    if job.status != "succeeded":
        raise typer.Exit(JOB_FAILED)


@contextmanager
def byte_progress(session: Session, path: Path) -> Iterator[Callable[[int, int], None] | None]:
    """Yield what to call with bytes done and in all; on a terminal it draws a bar."""
    try:
        with _byte_bar(session, path) as tell:
            yield tell
    except KeyboardInterrupt:
        if path.is_file() and UploadNote(session.client.url, path).read():
            typer.echo("\nWhat has arrived is kept: the same command goes on from there.", err=True)
        raise


@contextmanager
def _byte_bar(session: Session, path: Path) -> Iterator[Callable[[int, int], None] | None]:
    if not session.live:
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn(),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(path.name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def say_saved(session: Session, paths: tuple[Path, ...]) -> None:
    """Tell which files were written."""
    sizes = {str(path): path.stat().st_size for path in paths}
    rows = [[name, size(size_bytes)] for name, size_bytes in sizes.items()]
    data = [{"path": name, "size_bytes": size_bytes} for name, size_bytes in sizes.items()]
    session.show_table(data, ["file", "size"], rows)


@contextmanager
def _progress(session: Session) -> Iterator[tuple[Tell, Callable[[Event], None]]]:
    if session.live:
        with _bar() as tellers:
            yield tellers
        return
    lines = _Lines(silent=session.json)
    yield lines.on_change, lines.on_event


class _Lines:
    """Plain lines on standard error, one for each stage and for what is worth keeping."""

    def __init__(self, *, silent: bool) -> None:
        self._silent = silent
        self._last: tuple[str, str | None] | None = None

    def on_change(self, job: Job) -> None:
        now = (job.status, job.stage)
        if now != self._last and not self._silent:
            typer.echo(job_line(job), err=True)
        self._last = now

    def on_event(self, event: Event) -> None:
        if not self._silent and _is_worth_a_line(event):
            typer.echo(f"{event.level}: {event.message}", err=True)


@contextmanager
def _bar() -> Iterator[tuple[Tell, Callable[[Event], None]]]:
    from rich.console import Console, RenderableType
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
    from rich.text import Text

    training = TrainingLine()

    class Board(Progress):
        """The bar, and below it the figures of a training."""

        def get_renderables(self) -> Iterator[RenderableType]:
            yield from super().get_renderables()
            if training.text:
                yield Text(training.text, no_wrap=True, overflow="ellipsis")

    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.fields[stage]:<10}"), BarColumn(),
        TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(),
        TextColumn("{task.fields[eta]}{task.fields[message]}", markup=False),
    )  # fmt: skip
    with Board(*columns, console=console, transient=True) as progress:
        task = progress.add_task("job", total=1.0, stage="queued", eta="", message="")

        def on_change(job: Job) -> None:
            eta = "" if job.eta_seconds is None else f"{job.eta_seconds:.0f} s left  "
            message = job.message
            if job.status == "queued":
                eta, message = "", say_place(job.queue_position)
            if job.stage == "train" and training.text:
                eta = message = ""  # the line below says it
            else:
                training.text = ""
            progress.update(
                task, completed=job.progress, stage=job.stage or job.status, eta=eta,
                message=message,
            )  # fmt: skip

        def on_event(event: Event) -> None:
            if not training.take(event) and _is_worth_a_line(event):
                console.print(f"{event.level}: {event.message}", markup=False)

        yield on_change, on_event


def _is_worth_a_line(event: Event) -> bool:
    if event.type == "metrics":
        return not is_between_epochs(event)
    return event.level in ("warning", "error")


def _print_end(job: Job) -> None:
    if job.result is not None:
        typer.echo(f"{job.id} {job.status}")
        print_result(job.result)
        return
    typer.secho(job_line(job), fg="red", err=True)
    if job.error is not None and job.error.stage:
        typer.echo(f"  in stage {job.error.stage}", err=True)
    if job.error is not None and job.error.retryable:
        typer.echo(f"  once more it may succeed: tersor retry {job.id}", err=True)
