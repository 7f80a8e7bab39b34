"""What a job's process says of its result."""

from __future__ import annotations

from itertools import pairwise

from workers.child import _shorten_curve


def test_of_very_many_epochs_some_are_told_the_last_among_them() -> None:
    rows = [{"epoch": epoch} for epoch in range(1, 12_346)]
    told = _shorten_curve({"training": {"epochs": 12_345, "curve": rows}, "layers": []})
    curve = told["training"]["curve"]
    assert len(curve) == 1000
    assert (curve[0], curve[-1]) == ({"epoch": 1}, {"epoch": 12_345})
    gaps = {after["epoch"] - before["epoch"] for before, after in pairwise(curve)}
    assert gaps == {12, 13}
    assert (told["training"]["epochs"], told["layers"]) == (12_345, [])


def test_a_shorter_curve_is_told_whole() -> None:
    result = {"training": {"curve": [{"epoch": 1}] * 1000}}
    assert _shorten_curve(result) is result
    assert _shorten_curve({"training": None}) == {"training": None}
