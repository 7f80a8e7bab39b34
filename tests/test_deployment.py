"""Dockerfile and compose agree with the code, as far as that shows without a Docker engine."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from app import settings

ROOT = Path(__file__).parent.parent
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
OURS = {
    name: service
    for name, service in COMPOSE["services"].items()
    if str(service["image"]).startswith("tersor")
}


def known_variables() -> set[str]:
    classes = [
        settings.Settings, settings.DatabaseSettings, settings.BrokerSettings,
        settings.StorageSettings, settings.LimitSettings, settings.WorkerSettings,
    ]  # fmt: skip
    return {
        f"{cls.model_config['env_prefix']}{field}".upper()
        for cls in classes
        for field in cls.model_fields
    }


def test_every_copied_path_exists_and_is_sent_to_the_build() -> None:
    sent = (ROOT / ".dockerignore").read_text().splitlines()
    copies = re.findall(r"^COPY (?!--from)(.+) \S+$", (ROOT / "Dockerfile").read_text(), re.M)
    paths = [path for line in copies for path in line.split()]
    assert paths
    for path in paths:
        assert (ROOT / path).exists(), path
        assert f"!{path}" in sent


@pytest.mark.parametrize("name", OURS)
def test_services_set_only_variables_that_the_settings_know(name: str) -> None:
    assert set(OURS[name]["environment"]) <= known_variables()


@pytest.mark.parametrize("name", OURS)
def test_services_run_modules_that_exist(name: str) -> None:
    modules = re.findall(r"-m (\S+)", " ".join(OURS[name]["command"]))
    assert modules
    for module in modules:
        assert importlib.util.find_spec(module), module


def test_dependencies_have_the_health_checks_they_wait_for() -> None:
    for service in COMPOSE["services"].values():
        for other, condition in service.get("depends_on", {}).items():
            if condition["condition"] == "service_healthy":
                assert "test" in COMPOSE["services"][other]["healthcheck"]


def test_the_image_runs_as_an_ordinary_user() -> None:
    users = re.findall(r"^USER (\S+)$", (ROOT / "Dockerfile").read_text(), re.M)
    assert users == ["tersor"]
