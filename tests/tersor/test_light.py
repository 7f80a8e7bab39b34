"""The client is light: what importing it loads, and how long that takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.metadata import version

import tersor

HEAVY = ("torch", "numpy", "typer", "fastapi", "sqlalchemy", "celery", "app", "workers", "compress")


def run(code: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout


def test_importing_the_client_loads_nothing_heavy() -> None:
    loaded = json.loads(run("import tersor, sys, json; print(json.dumps(list(sys.modules)))"))
    assert [name for name in HEAVY if name in loaded] == []


def test_the_commands_load_neither_torch_nor_numpy_nor_the_service() -> None:
    code = "import tersor.cli, sys, json; print(json.dumps(list(sys.modules)))"
    loaded = json.loads(run(code))
    assert [name for name in HEAVY if name in loaded and name != "typer"] == []


def test_importing_the_client_takes_well_under_half_a_second() -> None:
    code = "import time; t = time.process_time(); import tersor; print(time.process_time() - t)"
    # of the processor's time: other processes on this machine do not count
    assert any(float(run(code)) < 0.4 for _ in range(3))


def test_help_answers_quickly() -> None:
    def seconds() -> float:
        before = os.times()
        subprocess.run([sys.executable, "-m", "tersor", "--help"], capture_output=True, check=True)
        after = os.times()
        took = after.children_user + after.children_system
        return took - before.children_user - before.children_system

    # of the processor's time: other processes on this machine do not count
    assert any(seconds() < 0.9 for _ in range(3))


def test_the_version_is_that_of_the_package() -> None:
    assert tersor.__version__ == version("tersor")
