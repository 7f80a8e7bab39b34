"""What every format of a job is written from."""

from __future__ import annotations

from pathlib import Path

from compress.devices import device_of
from compress.export import Plan
from compress.intake import Intake
from compress.lift import Lifted
from compress.quantize import Quantized
from compress.spec import Config, EngineSpec, PtqConfig, QatConfig


def plan_of(
    spec: EngineSpec,
    intake: Intake,
    lifted: Lifted,
    quantized: Quantized,
    original: Path,
    precision: str,
) -> Plan:
    """Return the plan of a compressed model.

    Args:
        spec: The job.
        intake: Its data.
        lifted: What the model was made from.
        quantized: The model.
        original: The file that has its arguments' names.
        precision: Of most of its weights, or `mixed`.
    """
    return Plan(
        graph_module=quantized.graph_module,
        original=original,
        probes=intake.probes(),
        precision=precision,
        dtype=intake.dtype,
        dynamic_dims=lifted.report.dynamic_dims,
        islands=lifted.report.island_reasons,
        guards=lifted.report.guards,
        freeze=_is_static(spec.config),
        device=device_of(spec.backend),
    )


def _is_static(config: Config) -> bool:
    return isinstance(config, QatConfig) or (
        isinstance(config, PtqConfig) and config.mode == "static"
    )
