"""`tersor models …` and `tersor datasets …`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from tersor.cli.figures import age, size
from tersor.cli.session import Session, command
from tersor.cli.watching import byte_progress, say_saved
from tersor.views import Dataset, Model

models = typer.Typer(help="Uploaded TorchScript files.", no_args_is_help=True)
datasets = typer.Typer(help="Uploaded npz and safetensors files.", no_args_is_help=True)

Labels = Annotated[list[str] | None, typer.Option("--label", help="key=value; may be repeated.")]
Limit = Annotated[int, typer.Option("--limit", min=1, help="How many at most.")]
File = Annotated[Path, typer.Argument(exists=True, dir_okay=False, readable=True)]
Name = Annotated[str | None, typer.Option("--name", help="Default: the file's name.")]
Output = Annotated[Path, typer.Option("--output", "-o", help="A file, or a folder that exists.")]


def pairs(values: list[str] | None, option: str) -> dict[str, str]:
    """Return `key=value` texts as a mapping."""
    found = {}
    for value in values or ():
        key, equals, rest = value.partition("=")
        if not (equals and key):
            raise typer.BadParameter(f"{value!r} is not of the form key=value", param_hint=option)
        found[key] = rest
    return found


@command(models, "upload")
def upload_model(
    session: Session,
    file: File,
    name: Name = None,
    inputs: Annotated[
        str | None,
        typer.Option(help='JSON: [{"name": "x", "shape": ["batch", 3, 224, 224]}].'),
    ] = None,
    label: Labels = None,
) -> None:
    """Upload a TorchScript file."""
    shapes = None
    if inputs is not None:
        try:
            shapes = json.loads(inputs)
        except ValueError as error:
            raise typer.BadParameter(f"not JSON: {error}", param_hint="--inputs") from error
    labels = pairs(label, "--label")
    with byte_progress(session, file) as progress:
        model = session.client.models.upload(
            file, name, inputs=shapes, labels=labels, progress=progress
        )
    session.show(model.raw, lambda: _print_model(model))


@command(models, "list")
def list_models(session: Session, limit: Limit = 50) -> None:
    """List models, newest first."""
    found = list(session.client.models.list(limit))
    rows = [[m.id, m.name, size(m.size_bytes), str(m.parameters or 0), age(m.created_at)]
            for m in found]  # fmt: skip
    session.show_table(
        [m.raw for m in found], ["id", "name", "size", "parameters", "age"], rows
    )  # fmt: skip


@command(models, "get")
def get_model(session: Session, model_id: str) -> None:
    """Look at one model."""
    model = session.client.models.get(model_id)
    session.show(model.raw, lambda: _print_model(model))


@command(models, "download")
def download_model(session: Session, model_id: str, output: Output = Path()) -> None:
    """Save a model as it was uploaded."""
    with byte_progress(session, Path(model_id)) as progress:
        path = session.client.models.download(model_id, output, progress=progress)
    say_saved(session, (path,))


@command(models, "delete")
def delete_model(session: Session, model_id: str) -> None:
    """Remove a model that no unfinished job needs."""
    session.client.models.delete(model_id)
    session.show({"deleted": model_id}, lambda: typer.echo(f"{model_id} deleted"))


@command(datasets, "upload")
def upload_dataset(session: Session, file: File, name: Name = None, label: Labels = None) -> None:
    """Upload arrays named input (or input_0, input_1 ...) and optionally label."""
    labels = pairs(label, "--label")
    with byte_progress(session, file) as progress:
        dataset = session.client.datasets.upload(file, name, labels=labels, progress=progress)
    session.show(dataset.raw, lambda: _print_dataset(dataset))


@command(datasets, "list")
def list_datasets(session: Session, limit: Limit = 50) -> None:
    """List datasets, newest first."""
    found = list(session.client.datasets.list(limit))
    rows = [
        [d.id, d.name, size(d.size_bytes), str(d.samples), _arrays(d), age(d.created_at)]
        for d in found
    ]
    session.show_table(
        [d.raw for d in found], ["id", "name", "size", "samples", "arrays", "age"], rows
    )


@command(datasets, "get")
def get_dataset(session: Session, dataset_id: str) -> None:
    """Look at one dataset."""
    dataset = session.client.datasets.get(dataset_id)
    session.show(dataset.raw, lambda: _print_dataset(dataset))


@command(datasets, "download")
def download_dataset(session: Session, dataset_id: str, output: Output = Path()) -> None:
    """Save a dataset as it was uploaded."""
    with byte_progress(session, Path(dataset_id)) as progress:
        path = session.client.datasets.download(dataset_id, output, progress=progress)
    say_saved(session, (path,))


@command(datasets, "delete")
def delete_dataset(session: Session, dataset_id: str) -> None:
    """Remove a dataset that no unfinished job needs."""
    session.client.datasets.delete(dataset_id)
    session.show({"deleted": dataset_id}, lambda: typer.echo(f"{dataset_id} deleted"))


def _print_model(model: Model) -> None:
    typer.echo(f"{model.id}  {model.name}  {size(model.size_bytes)}  {model.status}")
    typer.echo(f"  parameters {model.parameters}")
    typer.echo(f"  operators  {', '.join(sorted(model.operators)) or 'none'}")
    typer.echo(f"  sha256     {model.sha256}")


def _print_dataset(dataset: Dataset) -> None:
    typer.echo(f"{dataset.id}  {dataset.name}  {size(dataset.size_bytes)}")
    typer.echo(f"  samples {dataset.samples}")
    typer.echo(f"  arrays  {_arrays(dataset)}")
    typer.echo(f"  sha256  {dataset.sha256}")


def _arrays(dataset: Dataset) -> str:
    return ", ".join(f"{a.name} {a.dtype}{list(a.shape[1:])}" for a in dataset.arrays)
