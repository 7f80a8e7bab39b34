"""What a job is submitted with: options of the command, and the body that they make."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Annotated, Any

import typer

from tersor.cli.files import pairs
from tersor.cli.session import Session
from tersor.cli.watching import byte_progress

_ID = re.compile(r"(mdl|dst)_[0-9a-z]+")

Method = Annotated[str, typer.Argument(help="ptq, qat, distill, mixed or convert.")]
ModelOption = Annotated[
    str, typer.Option("--model", help="Id, or a file to upload first; of `distill` the teacher.")
]
Training = Annotated[
    str | None, typer.Option(help="Dataset to learn from, of qat and distill: id, or a file.")
]
Student = Annotated[
    str | None, typer.Option(help="Model that distill trains: id, or a file to upload.")
]
Calibration = Annotated[
    str | None, typer.Option(help="Dataset for activation ranges: id, or a file to upload.")
]
Evaluation = Annotated[
    str | None, typer.Option(help="Dataset for quality: id, or a file to upload.")
]
Samples = Annotated[int | None, typer.Option(min=1, help="Calibration samples, at most.")]
BatchSize = Annotated[int | None, typer.Option(min=1, help="Samples per calibration step.")]
Metric = Annotated[str | None, typer.Option(help="top1, top5, f1, mse, mae or agreement.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Config field, as observer=minmax.")
]
Overrides = Annotated[
    list[str] | None, typer.Option("--override", help="Precision of layers, as 'fc.*=fp32'.")
]
Formats = Annotated[
    list[str] | None,
    typer.Option("--format", help="torchscript, onnx, openvino or pt2; repeatable."),
]
Backend = Annotated[str | None, typer.Option(help="For what: x86, x86_vnni, arm or cuda.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu or cuda.")]
MaxDrop = Annotated[
    float | None, typer.Option("--max-drop", help="Accuracy budget: 0.01 is one point.")
]
JobLabels = Annotated[list[str] | None, typer.Option("--label", help="key=value.")]


def job_arguments(
    session: Session,
    model: str,
    calibration: str | None,
    evaluation: str | None,
    training: str | None,
    student: str | None,
    samples: int | None,
    batch_size: int | None,
    metric: str | None,
    settings: list[str] | None,
    overrides: list[str] | None,
    **fields: Any,
) -> dict[str, Any]:
    """Return the arguments of `jobs.submit` but the method; files are uploaded, each once."""
    config: dict[str, Any] = {
        key: _value(value) for key, value in pairs(settings, "--set").items()
    }  # fmt: skip
    if overrides:
        config["overrides"] = pairs(overrides, "--override")
    if calibration is None and (samples or batch_size):
        raise typer.BadParameter("needs --calibration", param_hint="--samples / --batch-size")
    if evaluation is None and metric:
        raise typer.BadParameter("needs --evaluation", param_hint="--metric")
    uploaded: dict[str, str] = {}
    return {
        "model_id": _stored(session, model, "mdl", uploaded),
        "calibration": _data(
            session, calibration, uploaded, samples=samples, batch_size=batch_size
        ),
        "evaluation": _data(session, evaluation, uploaded, metric=metric),
        "training": training and _stored(session, training, "dst", uploaded),
        "student": student and _stored(session, student, "mdl", uploaded),
        "config": config or None,
        **fields,
    }


def _data(
    session: Session, given: str | None, uploaded: dict[str, str], **fields: Any
) -> dict[str, Any] | None:
    if given is None:
        return None
    return {
        "dataset_id": _stored(session, given, "dst", uploaded),
        **{name: value for name, value in fields.items() if value is not None},
    }


def _stored(session: Session, given: str, prefix: str, uploaded: dict[str, str]) -> str:
    """Return the id given, or that of the file given, uploaded once."""
    if given in uploaded:
        return uploaded[given]
    path = Path(given)
    if not path.is_file():
        found = _ID.fullmatch(given)
        if found is None or found[1] != prefix:
            raise typer.BadParameter(f"{given!r} is neither a file nor an id ({prefix}_...)")
        return given
    client = session.client
    with byte_progress(session, path) as progress:
        if prefix == "mdl":
            stored = client.models.upload(path, progress=progress).id
        else:
            stored = client.datasets.upload(path, progress=progress).id
    if not session.json:
        typer.echo(f"{stored} is {path.name}", err=True)
    uploaded[given] = stored
    return stored


def _value(text: str) -> Any:
    """Return JSON where it is JSON (`true`, `0.5`, `[1]`), else the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text
