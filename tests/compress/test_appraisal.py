"""What is recommended, and what is not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from compress.appraisal import recommend
from compress.result import ArtifactReport, Baseline, Fidelity, Quality, Ratio


def report(**fields: Any) -> ArtifactReport:
    kept = {"name": "a", "format": "torchscript", "precision": "int8", "size_bytes": 10,
            "sha256": "", "compression_ratio": 4.0, "verdict": "faster",
            "speedup": Ratio(value=2.0, ci95=(1.9, 2.1)),
            "quality": Quality(metric="top1", value=0.9, samples=9, drop=0.005)}  # fmt: skip
    return ArtifactReport(**(kept | fields))


def test_recommended_is_fastest_within_budget_and_never_shown_slower() -> None:
    baseline = Baseline(
        size_bytes=40, parameters=1, quality=Quality(metric="top1", value=0.905, samples=9)
    )
    faster = report(name="b", speedup=Ratio(value=3.0, ci95=(2.9, 3.1)))
    wrong = report(name="c", speedup=Ratio(value=9.0, ci95=(8.0, 9.9)),
                   quality=Quality(metric="top1", value=0.8, samples=9, drop=0.105))  # fmt: skip
    slower = report(name="d", verdict="not_faster", speedup=Ratio(value=0.8, ci95=(0.7, 0.9)))
    even = report(name="e", verdict="not_faster", speedup=Ratio(value=1.0, ci95=(0.9, 1.1)))
    assert recommend([report(), faster, wrong, slower], baseline, 0.01) == "b"
    assert recommend([slower], baseline, 0.01) is None
    assert recommend([wrong], baseline, 0.01) is None
    assert recommend([even], baseline, 0.01) == "e"
    bare = report(quality=None, fidelity=Fidelity(sqnr_db=19.0, cosine=0.99))
    assert recommend([bare], baseline, 0.01) is None
    assert recommend([replace(bare, fidelity=Fidelity(sqnr_db=21.0, cosine=1.0))], baseline, 0.01)
