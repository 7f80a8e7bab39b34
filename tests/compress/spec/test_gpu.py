"""What a job for a GPU may ask for."""

from __future__ import annotations

from typing import Any

import pytest

from compress.spec.gpu import find_contradiction, needs_gpu


@pytest.mark.parametrize(
    ("method", "formats", "device", "field"),
    [
        ("convert", ["torchscript"], "auto", None),
        ("distill", ["torchscript"], "cuda", None),
        ("ptq", ["torchscript"], "auto", "method"),
        ("convert", ["torchscript", "onnx"], "auto", "formats"),
        ("convert", ["torchscript"], "cpu", "device"),
    ],
)
def test_contradictions_are_found(method: Any, formats: Any, device: Any, field: Any) -> None:
    found = find_contradiction(method, formats, device)
    assert (None if found is None else found[0]) == field


def test_a_gpu_is_needed_where_one_is_named() -> None:
    assert needs_gpu("auto", "cuda")
    assert needs_gpu("cuda", "x86")
    assert not needs_gpu("auto", "x86")
