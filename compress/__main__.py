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
from compress.pipeline import preflight, run
from compress.result import ArtifactReport, Inputs, Result
from compress.spec import Backend, ConvertConfig, EngineSpec, Metric, PtqConfig, Stage, TensorSpec


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
        """Print warnings; the rest is in the manifest."""
        if level != "info":
            sys.stderr.write(f"{level:>10}  {message}\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one job; 0 on success, 2 where model, data or options are at fault."""
    options = _parser().parse_args(arguments)
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
    rows = [("", "original", *(artifact.precision for artifact in result.artifacts))]
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
    config: PtqConfig | ConvertConfig
    convert = "precision" in options
    if convert:
        config = ConvertConfig(precision=options.precision)
    else:
        config = PtqConfig(
            granularity=options.granularity,
            observer=options.observer,
            overrides=dict(_override(text) for text in options.override),
        )
    return EngineSpec(
        method="convert" if convert else "ptq",
        config=config,
        metric=options.metric,
        calibration_samples=options.samples,
        calibration_batch_size=options.batch_size,
        seed=options.seed,
        threads=options.threads,
        backend="x86" if convert else options.backend,
        max_accuracy_drop=options.max_drop,
    )


def _inputs(options: argparse.Namespace) -> Inputs:
    for path in (options.model, options.data, options.evaluation):
        if path is not None and not path.is_file():
            raise InvalidSpec(f"There is no file {path}.")
    return Inputs(
        model=options.model,
        calibration=options.data,
        evaluation=options.evaluation,
        model_inputs=tuple(_declared(text) for text in getattr(options, "input", [])),
    )


def _override(text: str) -> tuple[str, Any]:
    pattern, separator, precision = text.rpartition("=")
    if not separator or precision not in ("int8", "fp32"):
        raise InvalidSpec(f"Override '{text}' is not PATTERN=int8 or PATTERN=fp32.")
    return pattern, precision


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
    ptq = commands.add_parser("ptq", help="post-training quantization to int8")
    convert = commands.add_parser("convert", help="float32 or float16, no calibration")
    check = commands.add_parser("preflight", help="what ptq would do, as JSON")
    for command in (ptq, convert, check):
        command.add_argument("model", type=Path, help="TorchScript file")
        optional = "?" if command is convert else None
        command.add_argument("data", type=Path, nargs=optional, help="calibration .npz")
        command.add_argument("--evaluation", type=Path, help="dataset to measure quality on")
        command.add_argument("--metric", choices=get_args(Metric))
        command.add_argument("--samples", type=int, default=256, help="calibration samples")
        command.add_argument("--batch-size", type=int, default=32)
        command.add_argument("--threads", type=int, default=1)
        command.add_argument("--seed", type=int, default=0)
        command.add_argument("--max-drop", type=float, default=0.01, help="accuracy budget")
    for command in (ptq, check):
        command.add_argument("--backend", choices=get_args(Backend), default="x86")
        command.add_argument("--observer", choices=("histogram", "minmax"), default="histogram")
        command.add_argument(
            "--granularity", choices=("per_channel", "per_tensor"), default="per_channel"
        )
        command.add_argument(
            "--override", action="append", default=[], metavar="PATTERN=PRECISION",
            help="keep layers float: 'features.0.*=fp32'",
        )  # fmt: skip
    for command in (ptq, convert):
        command.add_argument("-o", "--output", type=Path, required=True, help="output folder")
        command.add_argument("--json", action="store_true", help="print the result as JSON")
    convert.add_argument("--precision", choices=("fp32", "fp16"), default="fp32")
    convert.add_argument(
        "--input", action="append", default=[], metavar="NAME:DTYPE:SHAPE[=VALUE]",
        help="an input, where there is no data: x:float32:batch,3,224,224 or rate:int64:=16000",
    )  # fmt: skip
    return parser


if __name__ == "__main__":
    sys.exit(main())
