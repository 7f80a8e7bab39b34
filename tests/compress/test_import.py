"""What importing the engine costs."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_importing_the_engine_leaves_to_later_what_small_jobs_never_need() -> None:
    program = "import sys, compress.pipeline; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    loaded = done.stdout.decode().split()
    assert "torch" in loaded
    heavy = {"torch._dynamo", "sympy", "onnx", "onnxruntime", "openvino", "scipy", "matplotlib"}
    assert heavy.isdisjoint(loaded)
