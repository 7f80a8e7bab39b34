"""Mixed precision as a part of a job: plans are tried as files, on the job's own samples."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from compress.export import export
from compress.intake import Intake
from compress.judging import Reference, judge
from compress.lift import Lifted, load_model
from compress.measure.size import size_bytes
from compress.mixed.compose import Composer
from compress.mixed.planner import Bound, Figures, Found, find_plan
from compress.plans import plan_of
from compress.progress import Progress
from compress.quantize import Quantized
from compress.quantize.overrides import resolve_overrides
from compress.spec import EngineSpec, MixedConfig
from compress.structure import cast_floats

_SENSITIVITY_SAMPLES = 16
_TRIAL_CALLS = 15


def search_mixed(
    spec: EngineSpec,
    config: MixedConfig,
    intake: Intake,
    lifted: Lifted,
    original: Path,
    scratch: Path,
    progress: Progress,
) -> tuple[Found, Reference]:
    """Find the cheapest plan within the job's bound; also return the original's answers.

    Args:
        spec: The job.
        config: Its settings.
        intake: Its data.
        lifted: The lifted model; left as it is.
        original: The uploaded file.
        scratch: An existing folder for files that are tried and thrown away.
        progress: Is told of the stage `calibrate`.

    Raises:
        ConstraintUnmet: No plan keeps the bound.
    """
    progress.stage("calibrate", "measuring what each layer does to the answers")
    composer = _composer(
        spec,
        config,
        lifted,
        intake.probes()[-1],
        lambda: intake.calibration_batches(spec),
        intake.layer_probes(),
    )
    assert intake.calibration is not None  # open_intake has refused a job without
    count = _SENSITIVITY_SAMPLES if intake.step(intake.calibration, spec) > 1 else 1
    reference = Reference(intake, spec, lambda: load_model(original), keep=True)
    found = find_plan(
        composer.float_model,
        Bound.of(config, spec.max_accuracy_drop),
        config.candidates,
        _pinned(config, composer),
        intake.calibration.sample(0, min(count, intake.calibration.samples)),
        build=composer.build,
        measure=lambda made: _try_file(spec, intake, lifted, made, original, scratch, reference),
        static=composer.is_static,
        per_channel=config.granularity == "per_channel",
        on_step=progress.part,
    )
    return found, reference


def try_mixed(
    spec: EngineSpec, config: MixedConfig, lifted: Lifted, example: Sequence[Any]
) -> Quantized:
    """Return the smallest plan there is, with scales from one sample."""
    composer = _composer(spec, config, lifted, example, lambda: iter([example]), [])
    return composer.build(
        {**dict.fromkeys(composer.names, _cheapest(config)), **_pinned(config, composer)}
    )


def _try_file(
    spec: EngineSpec,
    intake: Intake,
    lifted: Lifted,
    made: Quantized,
    original: Path,
    scratch: Path,
    reference: Reference,
) -> Figures:
    """Write a plan as TorchScript, and measure the file."""
    written = export("torchscript", plan_of(spec, intake, lifted, made, original, "mixed"), scratch)
    loaded = load_model(written.path)
    judgement = judge(reference, {"trial": loaded})
    judged = judgement.of("trial")
    sample = cast_floats(intake.probes()[0], intake.dtype)
    times_s = []
    with torch.no_grad():
        for _ in range(_TRIAL_CALLS):
            began = time.perf_counter()
            loaded(*sample)
            times_s.append(time.perf_counter() - began)
    return Figures(
        size_bytes=size_bytes(written.path),
        fidelity=judged.fidelity,
        quality=judged.quality,
        baseline=judgement.baseline,
        latency_ms=statistics.median(times_s[_TRIAL_CALLS // 3 :]) * 1e3,
    )


def _composer(
    spec: EngineSpec,
    config: MixedConfig,
    lifted: Lifted,
    example: Sequence[Any],
    calibration: Callable[[], Iterator[Any]],
    probes: Sequence[Sequence[Any]],
) -> Composer:
    return Composer(
        lifted.graph_module,
        example,
        calibration,
        config,
        backend=spec.backend,
        islands=lifted.report.island_reasons,
        probes=probes,
    )


def _pinned(config: MixedConfig, composer: Composer) -> dict[str, Any]:
    resolved = resolve_overrides(config.overrides, composer.names)
    return {name: precision for name, (_, precision) in resolved.items()}


def _cheapest(config: MixedConfig) -> Any:
    return min(config.candidates, key=("int8", "fp16", "bf16", "fp32").index)
