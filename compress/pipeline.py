"""run() and preflight(): the only ways into the engine.

load - lift - calibrate - convert - export - evaluate - benchmark. Importing this module loads torch
and all that a job needs, but runs no operator, so a process may import it once and fork per job.
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from compress.appraisal import judge, race, recommend, report_artifact, report_baseline
from compress.caveats import caveats, foretell
from compress.errors import DeviceUnavailable, InvalidSpec, LiftMismatch, OutOfMemory
from compress.export.torchscript import export_torchscript
from compress.intake import Intake, open_intake
from compress.lift import Lifted, forward_arguments, lift
from compress.measure.environment import int8_saturates, read_environment
from compress.measure.size import size_bytes
from compress.progress import Progress
from compress.provenance import trace_provenance, write_manifest
from compress.quantize import Quantized, quantize_static, to_float32, to_half
from compress.result import Inputs, Result, Sink
from compress.spec import METHODS, ConvertConfig, EngineSpec, PtqConfig
from compress.structure import batch_length

_PROBE_SAMPLES = 4
"""Calibration samples on which the error of each layer is measured."""
_NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory", re.IGNORECASE)


def run(spec: EngineSpec, inputs: Inputs, sink: Sink, out_dir: Path) -> Result:
    """Compress a model, and measure what came out by running it.

    Args:
        spec: What to do.
        inputs: Files.
        sink: Is told of stages, progress and events.
        out_dir: An existing folder; receives the artifact and `manifest.json`.

    Raises:
        CompressError: What went wrong and what the user can do.
    """
    _check_spec(spec)
    progress = Progress(sink, calibrates=spec.method == "ptq")
    with (
        _settled(spec),
        tempfile.TemporaryDirectory(dir=out_dir, prefix=".scratch-") as scratch,
    ):
        progress.stage("load", "reading model and data")
        intake = open_intake(spec, inputs, Path(scratch))
        progress.stage("lift", "lifting the model's graph")
        lifted = lift(intake.model, _example(intake))
        sink.event("log", f"lifted {len(lifted.report.modules)} modules", lifted.report.to_dict())
        for sentence in caveats(lifted.report):
            sink.event("log", sentence, level="warning")
        compressed, precision = _compress(spec, intake, lifted, progress)
        progress.stage("export", "writing TorchScript")
        artifact = out_dir / f"model.{precision}.torchscript.pt"
        export_torchscript(
            compressed.graph_module,
            inputs.model,
            artifact,
            intake.probes(),
            dtype=intake.dtype,
            freeze=precision == "int8",
        )
        progress.stage("evaluate", "comparing answers")
        judged = judge(
            intake,
            spec,
            inputs.model,
            artifact,
            lambda done, total: progress.part(done / total, f"evaluating {done}/{total}"),
        )
        progress.stage("benchmark", "timing both models in turn")
        raced = race(
            intake,
            inputs.model,
            artifact,
            lambda done: progress.part(done, "timing both models in turn"),
        )
        baseline = report_baseline(inputs.model, intake.parameters, judged, raced)
        report = report_artifact(artifact, precision, baseline.size_bytes, judged, raced)
        environment = read_environment(torch.get_num_threads())
        result = Result(
            baseline=baseline,
            artifacts=[report],
            recommended=recommend([report], baseline, spec.max_accuracy_drop),
            layers=compressed.layers,
            environment=environment,
            provenance=trace_provenance(
                spec, inputs, full_range=_full_range(spec) if spec.method == "ptq" else None
            ),
            lift=lifted.report.to_dict(),
        )
    write_manifest(out_dir, result)
    progress.done()
    return result


def preflight(spec: EngineSpec, inputs: Inputs, sink: Sink) -> dict[str, Any]:
    """Say what a job would do, by trying it on one sample; writes nothing.

    Returns:
        `arguments`, `parameters`, what lifting reports (`operators`, `guards`, `dynamic_dims`,
        `islands`, `modules`, `methods_dropped`, `parameters_lifted`, `parameters_unused`,
        `parameters_by_module`), `layers` (as in a result, `sqnr_db` null), `counts` by precision,
        `dataset`, `estimated_size_bytes` and `estimated_compression_ratio`.

    Raises:
        CompressError: What `run` would raise in its first seconds.
    """
    _check_spec(spec)
    with _settled(spec), tempfile.TemporaryDirectory(prefix="tersor-") as scratch:
        sink.stage("load", "reading model and data")
        intake = open_intake(spec, inputs, Path(scratch))
        sink.stage("lift", "lifting the model's graph")
        example, lifted = _lift_quickly(intake)
        for sentence in caveats(lifted.report):
            sink.event("log", sentence, level="warning")
        sink.stage("convert", "trying the conversion on one sample")
        config = spec.config
        if isinstance(config, PtqConfig):
            tried = quantize_static(
                lifted.graph_module,
                example,
                None,
                config,
                full_range=_full_range(spec),
                islands=_reasons(lifted),
            )
        else:
            tried = _convert(config, lifted)
        before_bytes = size_bytes(inputs.model)
        saved_bytes = sum(layer.size_bytes[0] - layer.size_bytes[1] for layer in tried.layers)
        estimate_bytes = max(1, before_bytes - saved_bytes)
        counts: dict[str, int] = {}
        for layer in tried.layers:
            counts[layer.precision] = counts.get(layer.precision, 0) + 1
        judged = intake.judged
        return {
            "arguments": [
                {"name": one.name, "type": one.type, "optional": one.has_default}
                for one in forward_arguments(intake.model)
            ],
            "parameters": intake.parameters,
            **foretell(lifted.report),
            "layers": [
                vars(layer) | {"size_bytes": list(layer.size_bytes)} for layer in tried.layers
            ],
            "counts": counts,
            "metric": intake.metric,
            "dataset": None
            if judged is None
            else {
                "fits": True,
                "samples": judged.samples,
                "arrays": [
                    {"name": name, "dtype": str(array.dtype), "shape": list(array.shape)}
                    for name, array in zip(judged.names, judged.inputs, strict=True)
                ],
                "has_labels": judged.label is not None,
            },
            "size_bytes": before_bytes,
            "estimated_size_bytes": estimate_bytes,
            "estimated_compression_ratio": before_bytes / estimate_bytes,
        }


def _compress(
    spec: EngineSpec, intake: Intake, lifted: Lifted, progress: Progress
) -> tuple[Quantized, str]:
    config = spec.config
    if isinstance(config, ConvertConfig):
        progress.stage("convert", f"converting to {config.precision}")
        return _convert(config, lifted), config.precision
    dataset = intake.calibration
    assert dataset is not None  # open_intake has refused a job without
    total = min(dataset.samples, spec.calibration_samples)

    def counted() -> Iterator[list[Any]]:
        done = 0
        for batch in intake.calibration_batches(spec):
            yield batch
            done += batch_length(batch)
            progress.part(done / total, f"calibrating {done}/{total}")

    progress.stage("calibrate", f"calibrating 0/{total}")
    quantized = quantize_static(
        lifted.graph_module,
        _example(intake),
        counted(),
        config,
        full_range=_full_range(spec),
        islands=_reasons(lifted),
        probes=[dataset.sample(i, i + 1) for i in range(min(_PROBE_SAMPLES, total))],
        on_convert=lambda: progress.stage("convert", "turning weights into int8"),
    )
    return quantized, "int8"


def _convert(config: ConvertConfig, lifted: Lifted) -> Quantized:
    if config.precision == "fp16":
        return to_half(lifted.graph_module, _reasons(lifted))
    return to_float32(lifted.graph_module, _reasons(lifted))


def _reasons(lifted: Lifted) -> dict[str, str]:
    return {island.name: island.reason for island in lifted.report.islands}


def _lift_quickly(intake: Intake) -> tuple[list[Any], Lifted]:
    """Lift on one sample, proved at one more batch size; on the job's own example if that fails."""
    example = intake.first_sample()
    try:
        return example, lift(intake.model, example, other_batches=1)
    except LiftMismatch:  # some models are another computation for a single sample
        example = _example(intake)
        return example, lift(intake.model, example)


def _example(intake: Intake) -> list[Any]:
    """Return the batch that is lifted: of several samples, where the model takes such."""
    return intake.probes()[-1]


def _check_spec(spec: EngineSpec) -> None:
    if not isinstance(spec.config, METHODS[spec.method]):
        raise InvalidSpec(f"Method '{spec.method}' does not take a {type(spec.config).__name__}.")
    if spec.calibration_samples < 1 or spec.calibration_batch_size < 1 or spec.threads < 1:
        raise InvalidSpec("calibration_samples, calibration_batch_size and threads start at 1.")
    if spec.device == "cuda":
        raise DeviceUnavailable(
            f"Method '{spec.method}' for backend '{spec.backend}' computes on the processor; use "
            "device 'auto' or 'cpu'."
        )
    if _full_range(spec) and int8_saturates(read_environment(spec.threads)):
        raise DeviceUnavailable(
            "Backend 'x86_vnni' needs a processor with AVX512-VNNI, to measure on too, and this "
            "worker has none; use backend 'x86'."
        )


def _full_range(spec: EngineSpec) -> bool:
    return spec.backend == "x86_vnni"


@contextmanager
def _settled(spec: EngineSpec) -> Iterator[None]:
    """Set threads and seed for a job, and tell memory errors from others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            yield
    except MemoryError as error:
        raise OutOfMemory(_OUT_OF_MEMORY) from error
    except RuntimeError as error:
        if _NO_MEMORY.search(str(error)):
            raise OutOfMemory(_OUT_OF_MEMORY) from error
        raise
    finally:
        torch.set_num_threads(threads)


_OUT_OF_MEMORY = (
    "The job needed more memory than there is; use a smaller calibration batch_size, or a worker "
    "with more memory."
)
