"""From a lifted graph to a compressed one: what each method does, in a job and in a preflight."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import fx

from compress.benchmark import batch_of
from compress.devices import CPU, device_of, move
from compress.errors import NothingToCompress
from compress.intake import Intake
from compress.judging import Reference
from compress.learning import run_distillation, run_quantized, try_quantization, try_student
from compress.lift import Lifted
from compress.measure.throughput import BATCH_SIZES
from compress.progress import Progress
from compress.quantize import (
    Quantized,
    quantize_dynamic,
    quantize_static,
    quantize_weight_only,
    to_any_half,
    to_float32,
    to_half,
    to_half_computing,
    to_integers,
)
from compress.result import Inputs
from compress.searching import search_mixed, try_mixed
from compress.spec import (
    Config,
    ConvertConfig,
    DistillConfig,
    EngineSpec,
    MixedConfig,
    PtqConfig,
    QatConfig,
    needs_calibration,
)
from compress.structure import batch_length


@dataclass(frozen=True)
class Compressed:
    """A finished model in memory.

    Attributes:
        quantized: Its graph and the table of its layers.
        precision: Of most of its weights, or `mixed`.
        story: How a mixed plan was found, as plain JSON types.
        training: How the model learned, likewise.
        lifted: What the graph was made from.
        original: The file that has its arguments' names.
        reference: The original's answers, where finding it took them.
    """

    quantized: Quantized
    precision: str
    lifted: Lifted
    original: Path
    story: dict[str, Any] | None = None
    training: dict[str, Any] | None = None
    reference: Reference | None = None


def compress_model(
    spec: EngineSpec,
    intake: Intake,
    lifted: Lifted,
    inputs: Inputs,
    scratch: Path,
    progress: Progress,
) -> Compressed:
    """Compress as the job says.

    Args:
        spec: The job.
        intake: Its data.
        lifted: The lifted model; left as it is.
        inputs: The job's files.
        scratch: An existing folder for files that are tried and thrown away.
        progress: Is told of the stages `calibrate`, `train` and `convert`.

    Raises:
        CompressError: What went wrong and what the user can do.
    """
    config = spec.config
    if isinstance(config, MixedConfig):
        found, reference = search_mixed(
            spec, config, intake, lifted, inputs.model, scratch, progress
        )
        return Compressed(
            found.quantized, "mixed", lifted, inputs.model, found.story, reference=reference
        )
    if isinstance(config, DistillConfig | QatConfig):
        if isinstance(config, DistillConfig):
            learned = run_distillation(spec, config, intake, lifted, inputs, scratch, progress)
        else:
            learned = run_quantized(
                spec, config, intake, lifted, inputs, scratch, progress,
                intake.layer_probes(),
            )  # fmt: skip
        quantized, precision = learned.quantized, _label(config)
        if spec.backend == "cuda":
            quantized, precision = _halve(
                learned.quantized.graph_module, learned.lifted, intake.first_sample(), progress
            )
        return Compressed(
            quantized,
            precision,
            learned.lifted,
            inputs.student or inputs.model,
            training=learned.story,
            reference=learned.reference,
        )
    if needs_calibration(config):
        progress.stage("calibrate", "looking at the calibration data")
    example = intake.probes()[-1]
    quantized = _convert(
        spec,
        config,
        lifted,
        example,
        lambda: _counted(spec, intake, progress),
        probes=intake.layer_probes(),
        gpu=device_of("cuda") if spec.backend == "cuda" else None,
        batch=_timed_batch(intake) if spec.backend == "cuda" else None,
        warn=progress.warn,
        on_convert=lambda: progress.stage("convert", "converting weights"),
        on_round=lambda done, total: progress.part(done / total, f"rounding layer {done}/{total}"),
    )
    return Compressed(quantized, _label(config), lifted, inputs.model)


def try_method(
    spec: EngineSpec, intake: Intake, lifted: Lifted, example: Sequence[Any]
) -> Quantized:
    """Compress with what one sample tells: which layers, and how large; the values are of no use.

    Raises:
        CompressError: What `compress_model` would raise.
    """
    config = spec.config
    if isinstance(config, DistillConfig):
        student = try_student(spec, config, intake, lifted, example).lifted
        return to_float32(student.graph_module, student.report.island_reasons)
    if isinstance(config, QatConfig):
        return try_quantization(spec, config, intake, lifted, example)
    if isinstance(config, MixedConfig):
        return try_mixed(spec, config, lifted, example)
    return _convert(spec, config, lifted, example, lambda: None, probes=())


def _convert(
    spec: EngineSpec,
    config: PtqConfig | ConvertConfig,
    lifted: Lifted,
    example: Sequence[Any],
    calibration: Callable[[], Iterator[list[Any]] | None],
    *,
    probes: Sequence[Sequence[Any]],
    gpu: torch.device | None = None,
    batch: Sequence[Any] | None = None,
    warn: Callable[[str], None] = lambda message: None,
    on_convert: Callable[[], None] = lambda: None,
    on_round: Callable[[int, int], None] = lambda done, total: None,
) -> Quantized:
    graph, islands = lifted.graph_module, lifted.report.island_reasons
    if isinstance(config, ConvertConfig):
        on_convert()
        if config.precision == "fp32":
            whole = to_float32(graph, islands)
            if gpu is not None:
                move(whole.graph_module, gpu)
            return whole
        if gpu is not None:
            return to_half_computing(graph, example, islands, config.precision, gpu)
        return to_half(graph, islands, config.precision, probes)
    if spec.backend == "cuda":
        on_convert()
        return to_integers(
            graph, example, batch or example, config.overrides, islands, gpu or CPU, warn,
            is_timed=gpu is not None,
        )  # fmt: skip
    if config.mode == "weight_only":
        return quantize_weight_only(
            graph, config, islands=islands, probes=probes, on_convert=on_convert
        )
    if config.mode == "dynamic":
        return quantize_dynamic(
            graph,
            config,
            example_inputs=example,
            calibration=calibration() if config.smoothquant else None,
            backend=spec.backend,
            islands=islands,
            probes=probes,
            on_convert=on_convert,
        )
    return quantize_static(
        graph,
        example,
        calibration(),
        config,
        backend=spec.backend,
        islands=islands,
        probes=probes,
        on_convert=on_convert,
        seed=spec.seed,
        on_round=on_round,
    )


def _timed_batch(intake: Intake) -> list[Any] | None:
    """Return as many samples as throughput is measured with at most, if the model takes them."""
    batch = batch_of(intake, BATCH_SIZES[-1])
    return batch if batch is not None and intake.original.accepts(batch) else None


def _halve(
    model: fx.GraphModule, lifted: Lifted, probe: Sequence[Any], progress: Progress
) -> tuple[Quantized, str]:
    """Bring a model that has learned to a GPU, in 16 bits if it can be; its precision beside it."""
    islands, device = lifted.report.island_reasons, device_of("cuda")
    try:
        return to_any_half(model, probe, islands, device, progress.warn)
    except NothingToCompress as error:
        progress.warn(error.message)
    whole = to_float32(model, islands)
    move(whole.graph_module, device)
    return whole, "fp32"


def _label(config: Config) -> str:
    if isinstance(config, MixedConfig):
        return "mixed"
    if isinstance(config, ConvertConfig):
        return config.precision
    return "fp32" if isinstance(config, DistillConfig) else config.weight_dtype


def _counted(spec: EngineSpec, intake: Intake, progress: Progress) -> Iterator[list[Any]]:
    """Yield the calibration batches, and tell how far they are."""
    assert intake.calibration is not None  # open_intake has refused a job without
    total = min(intake.calibration.samples, spec.calibration_samples)
    done = 0
    for batch in intake.calibration_batches(spec):
        yield batch
        done += batch_length(batch)
        progress.part(done / total, f"calibrating {done}/{total}")
