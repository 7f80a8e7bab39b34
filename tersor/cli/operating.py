"""`tersor backup`, `restore` and `gc`: on the machine of the service, beside it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.administration import administer
from tersor.cli.figures import size
from tersor.cli.session import Session, command
from tersor.errors import ConfigurationError

root = typer.Typer()

DataDir = Annotated[
    Path | None,
    typer.Option(help="Folder of the service; else TERSOR_DATA_DIR, else ./tersor-data."),
]


@command(root, "backup", remote=False)
def backup(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="A new or empty folder.")],
    data_dir: DataDir = None,
) -> None:
    """Write the service's database and files into a folder; it may run meanwhile."""
    made = administer(_existing(data_dir), "backup", str(folder))
    session.show(made, lambda: _print_backup(f"backed up to {folder}", made))


@command(root, "restore", remote=False)
def restore(
    session: Session,
    folder: Annotated[Path, typer.Argument(help="A backup.", exists=True, file_okay=False)],
    data_dir: DataDir = None,
) -> None:
    """Put a backup into an empty service."""
    target = _chosen(data_dir)
    made = administer(target, "restore", str(folder))
    session.show(made, lambda: _print_backup(f"restored {folder}", made))


@command(root, "gc", remote=False)
def collect_garbage(
    session: Session,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List; delete nothing.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Delete files that belong to nothing; the service may run meanwhile."""
    options = () if dry_run else ("--delete",)
    found = administer(_existing(data_dir), "gc", *options)

    def render() -> None:
        for key in found["garbage"]:
            typer.echo(key)
        verb = "deleted" if found["deleted"] else "would delete"
        typer.echo(f"{verb} {_files(len(found['garbage']))}, {size(found['bytes'])}")
        _print_missing(found["missing"])

    session.show(found, render)


def _chosen(data_dir: Path | None) -> Path:
    return data_dir or Path(os.environ.get("TERSOR_DATA_DIR") or "tersor-data")


def _existing(data_dir: Path | None) -> Path:
    """Return the data folder; a mistyped one must not be made, and found empty."""
    folder = _chosen(data_dir)
    if "TERSOR_DATABASE_URL" not in os.environ and not (folder / "tersor.db").exists():
        raise ConfigurationError(
            f"There is no service in {str(folder)!r}: give its folder by --data-dir or "
            "TERSOR_DATA_DIR, and its database, if it has one elsewhere, by TERSOR_DATABASE_URL.",
            code="no_service_here",
        )
    return folder


def _print_backup(what: str, manifest: dict[str, Any]) -> None:
    typer.echo(f"{what}: {_files(manifest['files'])}, {size(manifest['bytes'])}")
    _print_missing(manifest["missing"])


def _print_missing(keys: list[str]) -> None:
    for key in keys:
        typer.secho(f"missing: {key}", err=True, fg="red")


def _files(count: int) -> str:
    return "1 file" if count == 1 else f"{count} files"
