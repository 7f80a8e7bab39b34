"""What a job for a GPU may ask for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from compress.spec import (
    METHODS,
    ConvertConfig,
    DistillConfig,
    MixedConfig,
    PtqConfig,
    QatConfig,
)
from compress.spec.gpu import find_contradiction, needs_gpu

DYNAMIC = PtqConfig(mode="dynamic")


@pytest.mark.parametrize(
    ("config", "formats", "device", "field"),
    [
        (ConvertConfig(), ["torchscript"], "auto", None),
        (DistillConfig(prune=0.5), ["torchscript"], "cuda", None),
        (DYNAMIC, ["torchscript"], "auto", None),
        (PtqConfig(), ["torchscript"], "auto", "config"),
        (PtqConfig(mode="weight_only"), ["torchscript"], "auto", "config"),
        (replace(DYNAMIC, smoothquant=True), ["torchscript"], "auto", "config"),
        (replace(DYNAMIC, granularity="per_tensor"), ["torchscript"], "auto", "config"),
        (replace(DYNAMIC, overrides={"a": "int8", "b": "fp16"}), ["torchscript"], "auto", None),
        (replace(DYNAMIC, overrides={"a": "fp32"}), ["torchscript"], "auto", "config"),
        (QatConfig(), ["torchscript"], "auto", "method"),
        (MixedConfig(), ["torchscript"], "auto", "method"),
        (ConvertConfig(), ["torchscript", "onnx"], "auto", "formats"),
        (ConvertConfig(), ["torchscript"], "cpu", "device"),
    ],
)
def test_contradictions_are_found(config: Any, formats: Any, device: Any, field: Any) -> None:
    method: Any = next(name for name, kind in METHODS.items() if isinstance(config, kind))
    found = find_contradiction(method, config, formats, device)
    assert (None if found is None else found[0]) == field


def test_a_gpu_is_needed_where_one_is_named() -> None:
    assert needs_gpu("auto", "cuda")
    assert needs_gpu("cuda", "x86")
    assert not needs_gpu("auto", "x86")
