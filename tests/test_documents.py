"""The documents tell the truth: their examples run, their lists are whole."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields as get_fields
from pathlib import Path

import pytest
from pydantic_settings import BaseSettings

from app.main import create_app
from app.settings import (
    AuditSettings,
    BrokerSettings,
    DatabaseSettings,
    LimitSettings,
    Settings,
    StorageSettings,
    WebhookSettings,
    WorkerSettings,
)
from compress.spec import DistillConfig, QatConfig
from tests.flow.conftest import Service, environment, start

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").glob("*.md"))]


def settings_in_the_code() -> set[str]:
    classes: tuple[type[BaseSettings], ...] = (
        Settings, DatabaseSettings, BrokerSettings, StorageSettings, LimitSettings,
        AuditSettings, WebhookSettings, WorkerSettings,
    )  # fmt: skip
    return {
        f"{kind.model_config.get('env_prefix', '')}{name}".upper()
        for kind in classes
        for name in kind.model_fields
    }


def test_the_readme_lists_every_setting_and_no_other() -> None:
    listed = set(re.findall(r"^\| `(TERSOR_\w+)` \|", README, re.M))
    assert listed == settings_in_the_code()


def test_the_api_reference_names_every_path_and_no_other() -> None:
    routes = {
        f"{method.upper()} {re.sub(r'{[^}]+}', '{id}', path)}"
        for path, methods in create_app(Settings()).openapi()["paths"].items()
        for method in methods
    }
    text = (ROOT / "docs" / "api.md").read_text()
    named = set(re.findall(r"`((?:GET|POST|PATCH|DELETE|OPTIONS) /[^`?\s]*)", text))
    named = {re.sub(r"{[^}]+}", "{id}", each) for each in named}
    assert named == routes


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)[^)]*\)", document.read_text()):
        assert (document.parent / target).exists(), target


def test_files_and_folders_that_the_architecture_names_exist() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    for path in re.findall(r"`((?:app|workers|compress|tersor|tests|benchmarks)/[\w/.]*)`", text):
        assert (ROOT / path).exists(), path


def test_the_page_on_training_lists_every_option_with_its_default() -> None:
    text = (ROOT / "docs" / "training.md").read_text()
    options = text[text.index("## Options") : text.index("## What one sees")]
    told: dict[str, str] = {}
    for names, default in re.findall(r"^\| (`[`\w, ]+`) \| ([^|]*)\|", options, re.M):
        for name in re.findall(r"\w+", names):
            told[name] = told.get(name, "") + default
    fields = {(kind, each) for kind in (DistillConfig, QatConfig) for each in get_fields(kind)}
    assert told.keys() == {each.name for _, each in fields}
    for kind, each in fields:
        if isinstance(each.default, str):
            assert each.default in told[each.name], (kind, each.name)
        elif isinstance(each.default, int | float):
            assert f"{each.default:g}" in told[each.name], (kind, each.name)


def run_examples(document: Path, folder: Path) -> list[str]:
    """Run a document's examples in order, against a service; return what each one printed."""
    blocks = re.findall(
        r"<!-- runs: \d -->\n```(python|bash)\n(.*?)```", document.read_text(), re.S
    )
    assert blocks
    service: Service = start(folder / "tersor-data")
    shell: dict[str, Callable[[str], list[str]]] = {
        "python": lambda code: [sys.executable, "-c", code],
        "bash": lambda code: ["bash", "-euo", "pipefail", "-c", code],
    }
    outputs = []
    try:
        for kind, code in blocks:
            done = subprocess.run(
                shell[kind](code.replace("http://127.0.0.1:8080", service.url)),
                cwd=folder,
                env={
                    **environment(folder / "state"),
                    "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                },
                capture_output=True,
                text=True,
                timeout=200,
                check=False,
            )
            assert done.returncode == 0, (code, done.stdout, done.stderr)
            outputs.append(done.stdout)
    finally:
        service.stop()
    return outputs


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_of_the_readme_run_in_order(tmp_path: Path) -> None:
    outputs = run_examples(ROOT / "README.md", tmp_path)
    assert len(outputs) == 4
    assert "model.int8.torchscript.pt" in outputs[1]
    assert re.search(r"[23]\.\dx smaller, (not_)?faster", outputs[2])
    assert (tmp_path / "out" / "model.int8.torchscript.pt").stat().st_size > 0
    assert "torch.Size([5, 10])" in outputs[3]


@pytest.mark.flow
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_examples_of_the_page_on_training_run_in_order(tmp_path: Path) -> None:
    outputs = run_examples(ROOT / "docs" / "training.md", tmp_path)
    assert len(outputs) == 5
    for printed in (outputs[1], outputs[2]):
        teacher, before, after = map(
            float, re.findall(r"(?:teacher|before|after) ([\d.]+)", printed)
        )
        assert before < after
        assert after > teacher - 0.05
    taught, learned = map(float, re.findall(r"(?:teacher|student) (0\.\d+|1\.0+)", outputs[3]))
    assert learned > taught - 0.05
    smaller = re.search(r"([\d.]+)x smaller in all", outputs[3])
    assert smaller is not None
    assert float(smaller[1]) > 6
    assert "model.int8.torchscript.pt" in outputs[4]
    assert "model.int8.onnx" in outputs[4]
