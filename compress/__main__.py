"""`python -m compress`: the engine without the service."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from math import isfinite
from pathlib import Path
from typing import Any, get_args, get_type_hints

from compress.errors import CompressError, InvalidSpec, RunTimeout
from compress.heap import keep_freed_memory
from compress.options import add_options, read_options
from compress.pipeline import preflight, run
from compress.result import ArtifactReport, Inputs, Result
from compress.spec import (
    METHODS,
    Backend,
    Device,
    EngineSpec,
    Format,
    Method,
    Metric,
    Stage,
    TensorSpec,
)

_TRAINING = ("distill", "qat")


class Terminal:
    """Shows stages on stderr, so that stdout holds the result alone."""

    def stage(self, stage: Stage, message: str) -> None:
        """Print the stage."""
        sys.stderr.write(f"{stage:>10}  {message}\n")

    def progress(self, fraction: float, message: str) -> None:
        """Redraw one line, on a terminal only."""
        if sys.stderr.isatty():
            sys.stderr.write(f"{fraction:>9.0%}  {message}\r")

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        """Print warnings and how training goes; the rest is in the manifest."""
        is_epoch = type == "metrics" and data is not None and bool(data.get("is_epoch"))
        if is_epoch or level != "info":
            sys.stderr.write(f"{'train' if is_epoch else level:>10}  {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; 0 on success, 2 where model, data or options are at fault."""
    options = _parser().parse_args(arguments)
    keep_freed_memory()
    try:
        spec, inputs = _spec(options), _inputs(options)
        if options.command == "preflight":
            answer = preflight(spec, inputs, Terminal())
            sys.stdout.write(json.dumps(answer, indent=2) + "\n")
            return 0
        options.output.mkdir(parents=True, exist_ok=True)
        result = run(spec, inputs, Terminal(), options.output)
    except CompressError as error:
        sys.stderr.write(f"{error.code}: {error.message}\n")
        if isinstance(error, RunTimeout):
            sys.stderr.flush()
            os._exit(2)  # a call that goes on would keep the process from ending
        return 2
    if options.json:
        sys.stdout.write(json.dumps(result.to_dict(), indent=2) + "\n")
    else:
        sys.stdout.write(table(result, options.output))
    return 0


def table(result: Result, out_dir: Path) -> str:
    """Return the result as text for people."""
    baseline = result.baseline
    rows = [("", "original", *(f"{a.precision} {a.format}" for a in result.artifacts))]
    rows.append(
        ("size", _size(baseline.size_bytes), *(
            f"{_size(a.size_bytes)} ({a.compression_ratio:.2f}x smaller)" for a in result.artifacts
        ))
    )  # fmt: skip
    if baseline.latency_ms is not None:
        rows.append(
            ("latency p50", f"{baseline.latency_ms.p50:.2f} ms", *map(_latency, result.artifacts))
        )
    if baseline.quality is not None:
        rows.append(
            (baseline.quality.metric, f"{baseline.quality.value:.4f}",
             *map(_quality, result.artifacts))
        )  # fmt: skip
    rows.append(("fidelity", "", *map(_fidelity, result.artifacts)))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    floating = [layer for layer in result.layers if layer.reason is not None]
    compact = sum(layer.precision not in ("fp32",) for layer in result.layers)
    lines.append(f"{compact} of {len(result.layers)} layers compressed")
    lines += [f"  {layer.name} ({layer.type}): {layer.reason}" for layer in floating]
    lines.append(f"recommended: {result.recommended or 'the original'}")
    lines += [f"no {each.format} file: {each.reason}" for each in result.undelivered]
    lines += [f"wrote {out_dir / artifact.name}" for artifact in result.artifacts]
    return "\n".join(lines) + "\n"


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB" if count >= 1e6 else f"{count / 1e3:.1f} kB"


def _latency(artifact: ArtifactReport) -> str:
    if artifact.latency_ms is None or artifact.speedup is None:
        return "not measured"
    low, high = artifact.speedup.ci95
    return (
        f"{artifact.latency_ms.p50:.2f} ms ({artifact.speedup.value:.2f}x, 95 % within {low:.2f} "
        f"to {high:.2f}: {artifact.verdict.replace('_', ' ')})"
    )


def _quality(artifact: ArtifactReport) -> str:
    if artifact.quality is None or artifact.quality.drop is None:
        return "not measured"
    return f"{artifact.quality.value:.4f} (drop {artifact.quality.drop:+.4f})"


def _fidelity(artifact: ArtifactReport) -> str:
    if artifact.fidelity is None:
        return "not measured"
    return f"{artifact.fidelity.sqnr_db:.1f} dB SQNR, cosine {artifact.fidelity.cosine:.5f}"


def _spec(options: argparse.Namespace) -> EngineSpec:
    method: Method = "ptq" if options.command == "preflight" else options.command
    return EngineSpec(
        method=method,
        config=read_options(options, METHODS[method]),
        formats=tuple(dict.fromkeys(options.format or ["torchscript"])),
        metric=options.metric,
        calibration_samples=options.samples,
        calibration_batch_size=32 if method in _TRAINING else options.batch_size,
        device=options.device if method in _TRAINING else "auto",
        seed=options.seed,
        threads=options.threads,
        backend=options.backend,
        max_accuracy_drop=options.max_drop,
    )


def _inputs(options: argparse.Namespace) -> Inputs:
    trains = options.command in _TRAINING
    student = getattr(options, "student", None)
    for path in (options.model, options.data, options.evaluation, student):
        if path is not None and not path.is_file():
            raise InvalidSpec(f"There is no file {path}.")
    checkpoints = options.checkpoints if trains else None
    if checkpoints is not None:
        checkpoints.mkdir(parents=True, exist_ok=True)
    return Inputs(
        model=options.model,
        calibration=None if trains else options.data,
        evaluation=options.evaluation,
        training=options.data if trains else None,
        student=student,
        checkpoints=checkpoints,
        model_inputs=tuple(_declared(text) for text in options.input),
    )


def _declared(text: str) -> TensorSpec:
    """Read `name:float32:batch,3,224,224`, or `name:int64:=16000`."""
    form, _, value = text.partition("=")
    parts = form.split(":")
    dtypes = get_args(get_type_hints(TensorSpec)["dtype"])
    try:
        number = json.loads(value) if value else None
    except ValueError:
        number = value
    known = number is None or (isinstance(number, bool | int | float) and isfinite(number))
    if len(parts) != 3 or not known or parts[1] not in dtypes:
        raise InvalidSpec(
            f"Input '{text}' is not NAME:DTYPE:SHAPE, as x:float32:batch,3,224,224, nor "
            "NAME:DTYPE:=VALUE, as rate:int64:=16000."
        )
    shape = tuple(int(axis) if axis.isdigit() else axis for axis in parts[2].split(",") if axis)
    return TensorSpec(name=parts[0], dtype=parts[1], shape=shape, value=number)  # type: ignore[arg-type]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m compress", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    helps = {
        "ptq": "post-training quantization", "mixed": "mixed precision within a bound",
        "convert": "formats and half precision", "preflight": "what ptq would do, as JSON",
        "distill": "train a smaller model on a larger one's answers",
        "qat": "quantization-aware training",
    }  # fmt: skip
    for name in (*METHODS, "preflight"):
        command = commands.add_parser(name, help=helps[name])
        command.add_argument("model", type=Path, help="TorchScript file")
        use = "training" if name in _TRAINING else "calibration"
        command.add_argument("data", type=Path, nargs="?", help=f"{use} .npz or .safetensors")
        command.add_argument("--evaluation", type=Path, help="dataset to measure quality on")
        command.add_argument("--metric", choices=get_args(Metric))
        command.add_argument("--samples", type=int, default=256, help="calibration samples")
        if name in _TRAINING:
            command.add_argument(
                "--checkpoints", type=Path, help="folder to go on from, if training is cut off"
            )
            command.add_argument("--device", choices=get_args(Device), default="auto")
        else:
            command.add_argument("--batch-size", type=int, default=32)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--max-drop", type=float, default=0.01, help="accuracy budget")
        command.add_argument("--backend", choices=get_args(Backend), default="x86")
        command.add_argument(
            "--format", action="append", choices=get_args(Format), help="repeatable"
        )
        command.add_argument(
            "--input", action="append", default=[], metavar="NAME:DTYPE:SHAPE[=VALUE]",
            help="an input, where there is no data: x:float32:batch,3,224,224 or rate:int64:=16000",
        )  # fmt: skip
        add_options(command, METHODS["ptq" if name == "preflight" else name])
        if name != "preflight":
            command.add_argument("-o", "--output", type=Path, required=True, help="output folder")
            command.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
