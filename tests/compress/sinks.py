"""A sink that remembers, and a place for results; shared by the engine's end-to-end tests."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class Recorder:
    def __init__(self) -> None:
        self.stages: list[str] = []
        self.fractions: list[float] = []
        self.messages: list[str] = []
        self.warnings: list[str] = []

    def stage(self, stage: str, message: str) -> None:
        self.stages.append(stage)

    def progress(self, fraction: float, message: str) -> None:
        self.fractions.append(fraction)
        self.messages.append(message)

    def event(
        self, type: str, message: str, data: Mapping[str, Any] | None = None, level: str = "info"
    ) -> None:
        json.dumps(data)
        if level == "warning":
            self.warnings.append(message)


def out_dir(tmp_path: Path) -> Path:
    path = tmp_path / "out"
    path.mkdir(parents=True, exist_ok=True)
    return path
