"""`tersor up`, `methods`, `system`, `keys …` and `projects …`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.figures import NOTHING, age
from tersor.cli.files import Limit
from tersor.cli.session import Session, command

root = typer.Typer()
keys = typer.Typer(help="API keys of your project.", no_args_is_help=True)
projects = typer.Typer(help="Projects; needs a key with the scope admin.", no_args_is_help=True)


@root.command("up")
def up(
    data_dir: Annotated[
        Path | None,
        typer.Option(help="Folder of everything; else TERSOR_DATA_DIR, else ./tersor-data."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 picks a free one.")] = 8080,
    workers: Annotated[int, typer.Option(min=1, help="Jobs at the same time.")] = 1,
) -> None:
    """Start the service: broker, workers and API. Ctrl-C stops it."""
    # late: it starts processes in ways that only Linux has, and the client runs anywhere
    from tersor.credentials import LaunchError
    from tersor.launcher import up as launch

    folder = data_dir or Path(os.environ.get("TERSOR_DATA_DIR") or "tersor-data")
    try:
        # echo flushes, so that a log file shows at once what a terminal would
        status = launch(folder, host, port, workers, typer.echo)
    except LaunchError as error:
        typer.secho(f"cannot start: {error}", err=True, fg="red")
        raise typer.Exit(1) from error
    raise typer.Exit(status)


@command(root, "methods")
def methods(
    session: Session,
    method: Annotated[str | None, typer.Argument(help="Show this one's JSON Schema.")] = None,
) -> None:
    """List the methods and their defaults, or show the schema of one."""
    if method is not None:
        session.show_json(session.client.method_schema(method))
        return
    found = session.client.methods()

    def render() -> None:
        for each in found:
            typer.echo(f"{each.name}: {each.description.splitlines()[0]}")
            for name, value in each.defaults.items():
                typer.echo(f"  {name} [{value}]")

    session.show([each.raw for each in found], render)


@command(root, "system")
def system(session: Session) -> None:
    """Show version, devices, workers, queues and limits of the service."""
    found = session.client.system()

    def render() -> None:
        typer.echo(f"Tersor {found.version} at {session.client.url}")
        typer.echo(f"devices  {', '.join(found.devices) or 'none reported yet'}")
        for worker in found.workers:
            typer.echo(f"worker   {worker['id']}  {','.join(worker['queues'])}")
        for name, counts in found.queues.items():
            figures = ", ".join(f"{count} {status}" for status, count in counts.items())
            typer.echo(f"queue    {name}: {figures}")
        for name, value in found.limits.items():
            typer.echo(f"limit    {name}: {value:.15g}")

    session.show(found.raw, render)


@command(keys, "create")
def create_key(
    session: Session,
    name: Annotated[str, typer.Option(help="What it is for.")] = "key",
    scope: Annotated[
        list[str] | None, typer.Option(help="read, write, admin; may be repeated.")
    ] = None,
    project: Annotated[str | None, typer.Option(help="Id of another project.")] = None,
) -> None:
    """Make a key. Its secret is shown this once."""
    key = session.client.keys.create(
        name, scopes=tuple(scope) if scope else None, project_id=project
    )
    session.show(
        key.raw, lambda: typer.echo(f"{key.id}  {key.name}\n{key.key}\nkeep it: it is shown once")
    )


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
            age(key.revoked_at) if key.revoked_at else NOTHING,
        ]
        for key in found
    ]  # fmt: skip
    columns = ["id", "name", "prefix", "scopes", "age", "revoked"]
    session.show_table([key.raw for key in found], columns, rows)


@command(keys, "revoke")
def revoke_key(session: Session, key_id: str) -> None:
    """Revoke a key, at once and for good."""
    session.client.keys.revoke(key_id)
    session.show({"revoked": key_id}, lambda: typer.echo(f"{key_id} revoked"))


@command(projects, "create")
def create_project(session: Session, name: str) -> None:
    """Make a project."""
    project = session.client.projects.create(name)
    session.show(project.raw, lambda: typer.echo(f"{project.id}  {project.name}"))


@command(projects, "list")
def list_projects(session: Session, limit: Limit = 50) -> None:
    """List projects, newest first."""
    found = list(session.client.projects.list(limit))
    rows = [[project.id, project.name, age(project.created_at)] for project in found]
    session.show_table([project.raw for project in found], ["id", "name", "age"], rows)
