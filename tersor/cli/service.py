"""`tersor up`, `methods` and `system`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.session import Session, command

root = typer.Typer()


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
