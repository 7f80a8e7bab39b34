"""`tersor keys …`, `projects …`, `webhooks …` and `audit`."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from tersor.cli.figures import NOTHING, age, clock, size
from tersor.cli.files import Limit
from tersor.cli.session import Session, command
from tersor.views import Project

root = typer.Typer()
keys = typer.Typer(help="API keys of your project.", no_args_is_help=True)
projects = typer.Typer(
    help="Projects and their limits; `show` apart, needs the scope admin.", no_args_is_help=True
)
webhooks = typer.Typer(help="Messages that tell when jobs have ended.", no_args_is_help=True)

_NO_BOUND = "none"
StoredBytes = Annotated[
    str | None, typer.Option(help="Of models, datasets and artifacts together, or none.")
]
UnfinishedJobs = Annotated[str | None, typer.Option(help="Queued and running, or none.")]
RequestsPerSecond = Annotated[
    str | None, typer.Option("--requests-per-s", help="Of all its keys together, or none.")
]
ExpiresAfter = Annotated[
    str | None,
    typer.Option("--expires-after-s", help="Finished jobs and unused files go then, or none."),
]


@command(keys, "create")
def create_key(
    session: Session,
    name: Annotated[str, typer.Option(help="What it is for.")] = "key",
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write, admin; may be repeated.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Id of another project.")] = None,
    expires_at: Annotated[
        str | None,
        typer.Option(help="When it stops to work: 2027-01-31, or 2027-01-31T12:00:00Z."),
    ] = None,
) -> None:
    """Make a key. Its secret is shown this once."""
    key = session.client.keys.create(
        name,
        scopes=tuple(scope) if scope else None,
        project_id=project,
        expires_at=_moment(expires_at) if expires_at else None,
    )

    def render() -> None:
        until = f"  until {clock(key.expires_at)}" if key.expires_at else ""
        typer.echo(f"{key.id}  {key.name}{until}\n{key.key}\nkeep it: it is shown once")

    session.show(key.raw, render)


@command(keys, "list")
def list_keys(
    session: Session,
    limit: Limit = 50,
    project: Annotated[str | None, typer.Option(help="Id of another project.")] = None,
) -> None:
    """List keys, newest first, without their secrets."""
    found = list(session.client.keys.list(limit, project_id=project))
    rows = [
        [
            key.id, key.name, key.prefix, ",".join(key.scopes), age(key.created_at),
            clock(key.expires_at), age(key.revoked_at),
        ]
        for key in found
    ]  # fmt: skip
    columns = ["id", "name", "prefix", "scopes", "age", "expires (utc)", "revoked"]
    session.show_table([key.raw for key in found], columns, rows)


@command(keys, "revoke")
def revoke_key(session: Session, key_id: str) -> None:
    """Revoke a key, at once and for good."""
    session.client.keys.revoke(key_id)
    session.show({"revoked": key_id}, lambda: typer.echo(f"{key_id} revoked"))


@command(projects, "create")
def create_project(
    session: Session,
    name: str,
    stored_bytes: StoredBytes = None,
    unfinished_jobs: UnfinishedJobs = None,
    requests: RequestsPerSecond = None,
    expires_after: ExpiresAfter = None,
) -> None:
    """Make a project."""
    bounds = _bounds(stored_bytes, unfinished_jobs, requests, expires_after)
    project = session.client.projects.create(name, **bounds)
    session.show(project.raw, lambda: typer.echo(f"{project.id}  {project.name}"))


@command(projects, "list")
def list_projects(session: Session, limit: Limit = 50) -> None:
    """List projects, newest first."""
    found = list(session.client.projects.list(limit))
    rows = [[project.id, project.name, age(project.created_at)] for project in found]
    session.show_table([project.raw for project in found], ["id", "name", "age"], rows)


@command(projects, "show")
def show_project(
    session: Session,
    project_id: Annotated[
        str | None, typer.Argument(help="Default: the project of your key.")
    ] = None,
) -> None:
    """Show a project's limits, and what it uses now."""
    if project_id is None:  # a key is always in the list of its own project's
        project_id = next(session.client.keys.list(1)).project_id
    project = session.client.projects.get(project_id)
    session.show(project.raw, lambda: _print_project(project))


@command(projects, "limits")
def limit_project(
    session: Session,
    project_id: str,
    stored_bytes: StoredBytes = None,
    unfinished_jobs: UnfinishedJobs = None,
    requests: RequestsPerSecond = None,
    expires_after: ExpiresAfter = None,
) -> None:
    """Set limits: those named change, and none takes one away."""
    bounds = _bounds(stored_bytes, unfinished_jobs, requests, expires_after)
    if not bounds:
        raise typer.BadParameter("name a limit to set, as --unfinished-jobs 10")
    project = session.client.projects.change(project_id, **bounds)
    session.show(project.raw, lambda: _print_project(project))


@command(webhooks, "secret")
def renew_secret(session: Session) -> None:
    """Make the secret that messages are signed with, or a new one. It is shown this once."""
    made = session.client.webhooks.renew_secret()
    session.show(made.raw, lambda: typer.echo(f"{made.secret}\nkeep it: it is shown once"))


@command(webhooks, "list")
def list_webhooks(
    session: Session,
    limit: Limit = 50,
    job: Annotated[str | None, typer.Option(help="Id of a job.")] = None,
) -> None:
    """List messages about jobs, newest first, and what became of them."""
    found = list(session.client.webhooks.list(limit, job_id=job))
    rows = [
        [
            each.id, each.job_id, each.type, each.status, str(each.attempts),
            str(each.response_status or NOTHING), age(each.created_at), each.error or NOTHING,
        ]
        for each in found
    ]  # fmt: skip
    columns = ["id", "job", "type", "status", "tries", "answer", "age", "error"]
    session.show_table([each.raw for each in found], columns, rows)


@command(root, "audit")
def audit(
    session: Session,
    limit: Limit = 50,
    project: Annotated[str | None, typer.Option(help="Only in this project.")] = None,
    key: Annotated[str | None, typer.Option(help="Only by the key of this id.")] = None,
) -> None:
    """List who changed what, newest first; needs a key with the scope admin."""
    found = list(session.client.audit.list(limit, project_id=project, key_id=key))
    rows = [
        [
            clock(event.created_at), event.action, event.subject_id,
            event.key_id or "the server's own command", event.project_id,
        ]
        for event in found
    ]  # fmt: skip
    columns = ["utc", "action", "subject", "by", "project"]
    session.show_table([event.raw for event in found], columns, rows)


def _bounds(
    stored_bytes: str | None,
    unfinished_jobs: str | None,
    requests: str | None,
    expires_after: str | None,
) -> dict[str, int | None]:
    given = {
        "stored_bytes": stored_bytes,
        "unfinished_jobs": unfinished_jobs,
        "requests_per_s": requests,
        "expires_after_s": expires_after,
    }
    return {name: _bound(name, text) for name, text in given.items() if text is not None}


def _bound(name: str, text: str) -> int | None:
    if text == _NO_BOUND:
        return None
    if not text.isdecimal():
        option = f"--{name.replace('_', '-')}"
        raise typer.BadParameter(f"{text!r} is neither a number nor none", param_hint=option)
    return int(text)


def _moment(text: str) -> datetime:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise typer.BadParameter(
            f"{text!r} is no time such as 2027-01-31T12:00:00Z", param_hint="--expires-at"
        ) from error
    return moment.astimezone()  # one without a zone is this machine's time


def _print_project(project: Project) -> None:
    usage = project.usage or {}
    typer.echo(f"{project.id}  {project.name}")
    for name in ("stored_bytes", "unfinished_jobs", "requests_per_s"):
        limit, used = project.limits.get(name), usage.get(name)
        show = size if name == "stored_bytes" else str
        bound = "no limit" if limit is None else f"at most {show(limit)}"
        typer.echo(f"  {name:<16} {bound}" + (f", {show(used)} now" if used is not None else ""))
    kept = f"{project.expires_after_s} s" if project.expires_after_s else "until deleted"
    typer.echo(f"  {'kept':<16} {kept}")
