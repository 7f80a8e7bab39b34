"""The tree of commands."""

from __future__ import annotations

from typing import Annotated

import typer

from tersor._version import get_version
from tersor.cli import files, jobs, operating, projects, service
from tersor.cli.session import ApiKey, Json, Session, Url

app = typer.Typer(
    help="Make TorchScript models smaller and faster, with figures you can trust.",
    epilog=(
        "Exit status: 0 done; 1 the job failed or was cancelled; 2 wrong usage; "
        "3 the service refused; 4 it cannot be reached; 130 interrupted."
    ),
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(service.root)
app.add_typer(operating.root)
app.add_typer(jobs.root)
app.add_typer(projects.root)
app.add_typer(jobs.jobs, name="jobs")
app.add_typer(files.models, name="models")
app.add_typer(files.datasets, name="datasets")
app.add_typer(projects.keys, name="keys")
app.add_typer(projects.projects, name="projects")
app.add_typer(projects.webhooks, name="webhooks")


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(get_version())
        raise typer.Exit


@app.callback()
def main(
    context: typer.Context,
    json: Json = False,
    url: Url = None,
    api_key: ApiKey = None,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    """Make TorchScript models smaller and faster, with figures you can trust."""
    context.obj = Session(json=json, url=url, api_key=api_key)
