"""What lifting found that a user must know: as sentences, and as figures before a job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from compress.lift.report import Island, LiftReport

_MOST_NAMED = 10
"""Of a kind; the report holds all."""
_TELLING = (
    "operators", "guards", "dynamic_dims", "islands", "modules", "methods_dropped",
    "parameters_lifted", "parameters_unused", "parameters_by_module",
)  # fmt: skip


def caveats(report: LiftReport) -> list[str]:
    """Return a sentence each on islands, guards and methods that are gone, where there are such."""
    sentences = []
    weighted = [island for island in report.islands if island.parameters]
    bare = [island for island in report.islands if not island.parameters]
    if weighted:
        sentences.append(f"Stays float: {_islands(weighted)}.")
    if bare:
        sentences.append(f"Stays TorchScript as it was, and holds no weights: {_islands(bare)}.")
    if report.guards:
        sentences.append(
            f"The compressed model holds only where {_some(report.guards, ' and ')}; called "
            "otherwise, it raises an error."
        )
    if report.methods_dropped:
        names = _some([f"'{name}'" for name in report.methods_dropped], ", ")
        sentences.append(f"The compressed file holds forward alone; it loses {names}.")
    return sentences


def foretell(report: LiftReport) -> dict[str, Any]:
    """Return what a preflight says of lifting: all that is the same on each run."""
    known = report.to_dict()
    return {key: known[key] for key in _TELLING}


def _islands(islands: Sequence[Island]) -> str:
    return _some([f"'{one.name}' ({one.reason.rstrip('.')})" for one in islands], "; ")


def _some(parts: Sequence[str], between: str) -> str:
    more = len(parts) - _MOST_NAMED
    return between.join([*parts[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])
