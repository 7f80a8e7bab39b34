"""Compresses the whole zoo, in small, to every format and precision, and checks what is promised.

Prints, for each file: how many times smaller it is than the original (small models say little of
size: half of their file is code), layers of the precision asked for, the lowest SQNR and the
largest relative error over three batch sizes and another image size or length, by running the file,
loaded afresh, beside the original; and the verdict. `refused` is one that is promised too: such a
model has no such file, and the error says so. Ends with status 1 where a promise is broken.

    python benchmarks/zoo_formats.py [--only PATTERN] [--format torchscript|onnx]

All of it takes a quarter of an hour; writing ONNX is most of that. The tests do the same with a
sample of the zoo.
"""

from __future__ import annotations

import argparse
import fnmatch
import sys
import tempfile
import time
import warnings
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.compress.zoo.formats import Case, Kind, Outcome, breach, case_of, kinds_of, write
from tests.compress.zoo.registry import ENTRIES

HEADINGS = ("file", "how", "format", "precision", "smaller", "layers", "SQNR dB", "error", "s",
            "verdict")  # fmt: skip
WIDTHS = (31, 7, 12, 10, 8, 7, 8, 8, 6, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", metavar="PATTERN", default="*", help="names, as in a shell")
    parser.add_argument("--format", choices=("torchscript", "onnx"), help="this one alone")
    arguments = parser.parse_args()
    torch.set_num_threads(1)  # nets as small as these only wait for a second one
    warnings.simplefilter("ignore")
    names = [name for name in ENTRIES if fnmatch.fnmatch(name, arguments.only)]
    print_line(HEADINGS)
    files, broken = 0, []
    for name in names:
        case = case_of(name)
        for kind in kinds_of(name):
            if arguments.format in (None, kind[0]):
                files += 1
                if not holds(case, kind):
                    broken.append(f"{name} {' '.join(kind)}")
    print(f"{files - len(broken)} of {files} files of {len(names)} models keep what is promised")
    for each in broken:
        print(f"broken: {each}")
    return 1 if broken or not files else 0


def holds(case: Case, kind: Kind) -> bool:
    """Write one file and print its line; whether it keeps what is promised."""
    began = time.process_time()
    with tempfile.TemporaryDirectory(prefix="tersor-zoo-") as folder:
        outcome = write(case, kind, Path(folder))
    fault = breach(case.entry.name, kind, outcome)
    print_line(cells(case, kind, outcome, fault, time.process_time() - began))
    return fault is None


def cells(
    case: Case, kind: Kind, outcome: Outcome, fault: str | None, seconds: float
) -> tuple[str, ...]:
    figures = ("-", "-", "-", "-")
    if outcome.refusal is None:
        figures = (
            f"{outcome.size_ratio:.2f}x",
            str(outcome.layers),
            f"{outcome.sqnr_db:.1f}",
            f"{outcome.max_relative_error:.0e}",
        )
    verdict = "ok" if outcome.refusal is None else f"refused: {outcome.refusal}"
    return (
        case.entry.name, case.how, *kind, *figures, f"{seconds:.1f}",
        verdict if fault is None else f"BROKEN: {fault}",
    )  # fmt: skip


def print_line(row: tuple[str, ...]) -> None:
    left = {0, 1, 2, 3}
    line = "".join(
        cell.ljust(width) if index in left else cell.rjust(width)
        for index, (cell, width) in enumerate(zip(row[:-1], WIDTHS, strict=False))
    )
    print(f"{line}  {row[-1]}".rstrip(), flush=True)


if __name__ == "__main__":
    sys.exit(main())
