"""What a job's process is told to do: `order.json` in its folder, written by the supervisor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from compress.spec import METHODS, EngineSpec
from workers.sandbox import Limits, Mode

FILE_NAME = "order.json"


@dataclass(frozen=True, kw_only=True)
class Order:
    """One run of the engine.

    Attributes:
        kind: `job` or `preflight`.
        spec: For the engine.
        inputs: Role (model, student, calibration, evaluation, training) to file name in the folder
            `inputs`.
        model_inputs: Shapes declared at the model's upload.
        limits: What the process may use.
        nice: Politeness towards the API.
        checkpoints: Folder that outlives the attempt, of a job that trains.
        sandbox: How much of the sandbox must stand.
    """

    kind: str
    spec: EngineSpec
    inputs: Mapping[str, str]
    model_inputs: tuple[Mapping[str, Any], ...]
    limits: Limits
    nice: int
    checkpoints: str | None = None
    sandbox: Mode = "on"

    def save(self, folder: Path) -> None:
        """Write the order into a job's folder."""
        (folder / FILE_NAME).write_text(json.dumps(asdict(self)))


def load_order(folder: Path) -> Order:
    """Read the order from a job's folder."""
    content = json.loads((folder / FILE_NAME).read_text())
    return Order(
        kind=content["kind"],
        spec=_engine_spec(content["spec"]),
        inputs=content["inputs"],
        model_inputs=tuple(content["model_inputs"]),
        limits=Limits(**content["limits"]),
        nice=content["nice"],
        checkpoints=content["checkpoints"],
        sandbox=content["sandbox"],
    )


def spec_from_request(request: Mapping[str, Any], threads: int) -> EngineSpec:
    """Return the engine's spec for a job's stored request, which has its defaults filled in."""
    calibration = request.get("calibration") or {}
    evaluation = request.get("evaluation") or {}
    fields = {
        name: request[name] for name in ("method", "config", "formats", "backend", "device", "seed")
        if request.get(name) is not None
    }  # fmt: skip
    if request.get("backend") == "cuda":
        fields["device"] = "cuda"
    if evaluation.get("metric") is not None:
        fields["metric"] = evaluation["metric"]
    if calibration.get("samples") is not None:
        fields["calibration_samples"] = calibration["samples"]
    if calibration.get("batch_size") is not None:
        fields["calibration_batch_size"] = calibration["batch_size"]
    if request.get("max_accuracy_drop") is not None:
        fields["max_accuracy_drop"] = request["max_accuracy_drop"]
    return _engine_spec({**fields, "threads": threads})


def _engine_spec(fields: Mapping[str, Any]) -> EngineSpec:
    values = dict(fields)
    if "config" in values:
        values["config"] = METHODS[values.get("method", "ptq")](**values["config"])
    if "formats" in values:
        values["formats"] = tuple(values["formats"])
    return EngineSpec(**values)
