"""Lifts the whole zoo at its published sizes, beside torch's own converter.

Prints, for each file: parameters, the share of those in use that is lifted, islands, the largest
relative error at three batch sizes and at another image size or length (these by running both
models, in this script, at full size), seconds to lift with verification and without, and seconds of
`torch._export.converter.TS2EPConverter`, which verifies nothing, or the name of its error; the
ratios are to the seconds with verification and without. The converter runs in a process of its own,
since it may crash or hang; it is warmed with a small model first, as lifting is. Seconds are of the
processor's time, so that what else runs on the machine counts for little.

    python benchmarks/lift_zoo.py [--only PATTERN] [--small] [--times] [--json]
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import fnmatch
import json
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.jit._fuser import optimized_execution

sys.path.insert(0, str(Path(__file__).parent.parent))
from compress.lift import lift
from compress.lift.compare import relative_error
from compress.structure import map_tensors
from tests.compress.zoo.entry import Entry, How, export, load
from tests.compress.zoo.registry import ENTRIES

HEADINGS = ("file", "how", "params M", "lifted", "islands", "error", "other size", "lift s",
            "unverified", "converter s", "ratio", "unverified")  # fmt: skip
WIDTHS = (31, 7, 9, 9, 8, 8, 11, 8, 11, 29, 7, 11)


@dataclass
class Row:
    """One file. Errors say what was raised, by lifting or at another size; infinite is one too."""

    name: str
    how: How
    parameters: int = 0
    parameters_lifted: int = 0
    parameters_unused: int = 0
    islands: int = 0
    max_relative_error: float | None = None
    max_relative_error_other_size: float | None = None
    lift_s: float | None = None
    lift_unverified_s: float | None = None
    lift_error: str | None = None
    converter_s: float | None = None
    converter_error: str | None = None

    def cells(self) -> tuple[str, ...]:
        used = self.parameters - self.parameters_unused
        share = f"{100 * self.parameters_lifted / used:.1f} %" if used else "-"
        failed = self.lift_s is None
        return (
            self.name,
            self.how,
            f"{self.parameters / 1e6:.2f}",
            "-" if failed else share,
            "-" if failed else str(self.islands),
            _scientific(self.max_relative_error),
            _scientific(self.max_relative_error_other_size),
            _seconds(self.lift_s),
            _seconds(self.lift_unverified_s),
            self.converter_error or _seconds(self.converter_s),
            _ratio(self.converter_s, self.lift_s),
            _ratio(self.converter_s, self.lift_unverified_s),
        )


def _seconds(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _ratio(theirs: float | None, ours: float | None) -> str:
    return f"{theirs / ours:.1f}x" if theirs and ours else "-"


def _scientific(value: float | None) -> str:
    return "-" if value is None else f"{value:.0e}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names, as in a shell")
    parser.add_argument("--small", action="store_true", help="the sizes that the tests use")
    parser.add_argument(
        "--times", action="store_true", help="leave out the errors, which take longest"
    )
    parser.add_argument("--json", action="store_true", help="a list of rows instead of the table")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--limit-s", type=float, default=120, help="seconds for either")
    parser.add_argument("--convert", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.simplefilter("ignore")
    if arguments.convert:
        print(json.dumps(convert(Path(arguments.convert))))
        return
    if not arguments.json:
        _print_line(HEADINGS)
    warm_up()
    rows: list[Row] = []
    for name, entry in ENTRIES.items():
        if not fnmatch.fnmatch(name, arguments.only):
            continue
        for how in entry.hows:
            rows.append(measure(entry, how, full=not arguments.small, arguments=arguments))
            if not arguments.json:
                _print_line(rows[-1].cells())
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print_summary(rows)


def warm_up() -> None:
    """Lifts a layer, so that the first row does not pay for what a process does once."""
    lift(*small_model())


def small_model() -> tuple[torch.jit.ScriptModule, list[Any]]:
    example: list[Any] = [torch.randn(2, 3)]
    return load(export(nn.Linear(3, 3).eval(), example, "trace")), example


def measure(entry: Entry, how: How, *, full: bool, arguments: argparse.Namespace) -> Row:
    """Lifts and converts one file, which is exported first and written to a folder."""
    row = Row(entry.name, how)
    example = entry.example(full=full)
    file = export(entry.model(full=full), example, how)
    original = load(file)
    parameters = dict(original.named_parameters())
    row.parameters = sum(value.numel() for value in parameters.values())
    row.parameters_unused = sum(
        value.numel() for name, value in parameters.items() if name.startswith(entry.unused)
    )
    try:
        with time_limit(arguments.limit_s):
            began = time.process_time()
            lift(original, example, verify=False)
            row.lift_unverified_s = time.process_time() - began
            began = time.process_time()
            lifted = lift(original, example)
            row.lift_s = time.process_time() - began
        row.parameters_lifted = lifted.report.parameters_lifted
        row.islands = len(lifted.report.islands)
        if not arguments.times:
            compare(entry, row, file, lifted.graph_module, full=full)
    except Exception as error:
        row.lift_error = describe(error)
    with tempfile.TemporaryDirectory(prefix="tersor-zoo-") as folder:
        (Path(folder) / "model.pt").write_bytes(file)
        torch.save(example, Path(folder) / "inputs.pt")
        answer = convert_apart(folder, arguments)
    row.converter_s, row.converter_error = answer.get("seconds"), answer.get("error")
    return row


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raises `TimeoutError` in the block after so many seconds."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"over {seconds:.0f} s")

    signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def compare(entry: Entry, row: Row, file: bytes, graph_module: nn.Module, *, full: bool) -> None:
    """Fills in the errors at three batch sizes, and at another extent if it may vary."""
    errors: list[float] = []
    for batch, extent in entry.sizes(row.how, full=full):
        given = entry.inputs(full, batch, extent)
        # neither may remember what the other sizes left behind
        lifted = copy.deepcopy(graph_module) if entry.stateful else graph_module
        with torch.no_grad(), optimized_execution(False):
            expected = load(file)(*map_tensors(given, Tensor.clone))
            try:
                actual = lifted(*map_tensors(given, Tensor.clone))
            except Exception as error:
                row.lift_error = f"at {batch} x {extent}: {describe(error)}"
                actual = None
        errors.append(relative_error(actual, expected))
    row.max_relative_error = max(errors[:3])
    row.max_relative_error_other_size = errors[3] if len(errors) > 3 else None


def describe(error: Exception) -> str:
    """The name, and the first line of the message."""
    message = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {message[0]}"


def convert_apart(folder: str, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `convert` says in a process of its own, or what became of that process."""
    command = [sys.executable, __file__, "--convert", folder, "--threads", str(arguments.threads)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=arguments.limit_s, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"over {arguments.limit_s:.0f} s"}
    if done.returncode != 0:
        return {"error": f"exit status {done.returncode}"}
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


def convert(folder: Path) -> dict[str, Any]:
    """Seconds that torch's converter takes for the file in `folder`, or its error's name."""
    from torch._export.converter import TS2EPConverter

    module = torch.jit.load(str(folder / "model.pt")).eval()
    inputs = torch.load(folder / "inputs.pt")
    small, example = small_model()
    TS2EPConverter(small, tuple(example), {}).convert()  # warm, as lifting is
    began = time.process_time()
    try:
        with torch.no_grad():
            TS2EPConverter(module, tuple(inputs), {}).convert()
    except Exception as error:
        return {"error": type(error).__name__}
    return {"seconds": time.process_time() - began}


def _print_line(cells: tuple[str, ...]) -> None:
    line = "".join(
        cell.ljust(width) if index < 2 else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(cells, WIDTHS, strict=True))
    )
    print(line.rstrip(), flush=True)


def _print_summary(rows: list[Row]) -> None:
    for row in rows:
        if row.lift_error is not None:
            print(f"{row.name} {row.how}: {row.lift_error}")
    both = [row for row in rows if row.lift_s and row.converter_s]
    lifted = sum(row.lift_s is not None for row in rows)
    whole = sum(
        row.lift_error is None and row.parameters_lifted == row.parameters - row.parameters_unused
        for row in rows
    )
    converted = sum(row.converter_error is None for row in rows)
    print(
        f"{lifted} of {len(rows)} lifted, {whole} wholly and for all sizes; {converted} converted"
    )
    if both:
        ours = sum(row.lift_s or 0.0 for row in both)
        theirs = sum(row.converter_s or 0.0 for row in both)
        print(f"of the {len(both)} that both take: {ours:.1f} s lifted, {theirs:.1f} s converted")
        slower = [r for r in both if (r.lift_s or 0.0) >= (r.converter_s or 0.0)]
        print("slower to lift:", ", ".join(f"{r.name} {r.how}" for r in slower) or "none")


if __name__ == "__main__":
    main()
