from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.slow
def test_the_worker_process_imports_no_torch_and_no_web_framework() -> None:
    code = (
        "import sys, workers.__main__, workers.sweeper, workers.supervisor\n"
        "print([name for name in ('torch', 'numpy', 'fastapi', 'compress.pipeline')"
        " if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
