"""run() and preflight(): the only ways into the engine.

load - lift - calibrate - train - convert - export - evaluate - benchmark. Importing this module
loads torch and all that a job needs, but runs no operator, so a process may import it once and fork
per job.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn

from compress.appraisal import Finished, appraise, recommend
from compress.caveats import caveats, foretell
from compress.devices import device_of, find_device
from compress.errors import (
    DeviceUnavailable,
    ExportFailed,
    InvalidSpec,
    LiftMismatch,
    ModelFailed,
    OutOfMemory,
)
from compress.export import export
from compress.intake import Intake, open_intake
from compress.lift import Lifted, forward_arguments, lift
from compress.measure.environment import int8_saturates, read_environment
from compress.measure.memory import MemoryProbe
from compress.measure.size import size_bytes
from compress.methods import Compressed, compress_model, try_method
from compress.out_of_memory import lacks_memory
from compress.plans import plan_of
from compress.progress import Kind, Progress
from compress.provenance import trace_provenance, write_manifest
from compress.quantize import Quantized
from compress.quantize.engines import engine_for
from compress.report import write_report
from compress.result import Inputs, Result, Sink, Undelivered
from compress.spec import (
    METHODS,
    Config,
    DistillConfig,
    EngineSpec,
    MixedConfig,
    PtqConfig,
    QatConfig,
    TrainingConfig,
    needs_calibration,
)
from compress.spec.gpu import find_contradiction


def run(
    spec: EngineSpec,
    inputs: Inputs,
    sink: Sink,
    out_dir: Path,
    start_probe: Callable[[], MemoryProbe] | None = None,
) -> Result:
    """Compress a model, and measure what came out by running it.

    Args:
        spec: What to do.
        inputs: Files.
        sink: Is told of stages, progress and events.
        out_dir: An existing folder; receives the artifacts, `manifest.json` and `report.html`.
        start_probe: Where memory is measured; by default in a fresh process, started when needed,
            which a locked-down process cannot do.

    Raises:
        CompressError: What went wrong and what the user can do.
    """
    _check_spec(spec)
    _check_device(spec)
    progress = Progress(sink, _kind(spec.config))
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
        compressed = compress_model(spec, intake, lifted, inputs, Path(scratch), progress)
        finished, undelivered = _export(spec, intake, compressed, out_dir, progress)
        baseline, reports, broken = appraise(
            intake, spec, inputs.model, finished, progress, start_probe, compressed.reference
        )
        environment = read_environment(torch.get_num_threads(), device_of(spec.backend))
        result = Result(
            baseline=baseline,
            artifacts=reports,
            recommended=recommend(reports, baseline, spec.max_accuracy_drop),
            max_accuracy_drop=spec.max_accuracy_drop,
            undelivered=[*undelivered, *broken],
            layers=compressed.quantized.layers,
            mixed=compressed.story,
            training=compressed.training,
            environment=environment,
            provenance=trace_provenance(
                spec, inputs, full_range=spec.backend != "x86" if _has_static(spec.config) else None
            ),
            lift=lifted.report.to_dict(),
        )
    write_manifest(out_dir, result)
    write_report(out_dir, result)
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
        tried = try_method(spec, intake, lifted, example)
        before_bytes = size_bytes(inputs.model)
        estimate_bytes = max(1, before_bytes - _saved_bytes(spec.config, lifted, tried))
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


def _export(
    spec: EngineSpec,
    intake: Intake,
    compressed: Compressed,
    out_dir: Path,
    progress: Progress,
) -> tuple[list[Finished], list[Undelivered]]:
    """Write every format asked for; one that cannot hold the model does not keep the others.

    Raises:
        ExportFailed: None could be written.
    """
    progress.stage("export", f"writing {spec.formats[0]}")
    plan = plan_of(
        spec,
        intake,
        compressed.lifted,
        compressed.quantized,
        compressed.original,
        compressed.precision,
    )
    finished, undelivered = [], []
    formats = list(dict.fromkeys(spec.formats))
    for done, format_ in enumerate(formats):
        progress.part(done / len(formats), f"writing {format_}")
        try:
            written = export(format_, plan, out_dir)
        except ExportFailed as error:
            if len(formats) == 1:
                raise
            progress.warn(f"No {format_} file: {error.message}")
            undelivered.append(Undelivered(format=format_, code=error.code, reason=error.message))
        else:
            finished.append(Finished(written.path, format_, compressed.precision))
    if not finished:
        reasons = "; ".join(f"{each.format}: {each.reason}" for each in undelivered)
        raise ExportFailed(f"None of the formats could be written. {reasons}")
    return finished, undelivered


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
    if spec.backend == "cuda":
        found = find_contradiction(spec.method, spec.config, spec.formats, spec.device)
        if found is not None:
            raise InvalidSpec(found[1])
    elif spec.device == "cuda" and not isinstance(spec.config, TrainingConfig):
        raise DeviceUnavailable(
            f"Method '{spec.method}' for backend '{spec.backend}' computes on the processor; use "
            "device 'auto' or 'cpu'."
        )
    if spec.backend == "x86_vnni" and int8_saturates(read_environment(spec.threads)):
        raise DeviceUnavailable(
            "Backend 'x86_vnni' needs a processor with AVX512-VNNI, to measure on too, and this "
            "worker has none; use backend 'x86'."
        )


def _check_device(spec: EngineSpec) -> None:
    """Raise DeviceUnavailable where the job is for a GPU and there is none."""
    if spec.backend == "cuda":
        device_of(spec.backend)
    elif isinstance(spec.config, TrainingConfig):
        find_device(spec.device)


def _kind(config: Config) -> Kind:
    if isinstance(config, TrainingConfig):
        return "trains"
    return "calibrates" if needs_calibration(config) else "converts"


def _saved_bytes(config: Config, lifted: Lifted, tried: Quantized) -> int:
    """Return by how much the weights shrink; a student's are others altogether."""
    if isinstance(config, DistillConfig):
        return _weights_bytes(lifted.graph_module) - _weights_bytes(tried.graph_module)
    return sum(layer.size_bytes[0] - layer.size_bytes[1] for layer in tried.layers)


def _weights_bytes(model: nn.Module) -> int:
    return sum(parameter.nbytes for parameter in model.parameters())


def _has_static(config: Config) -> bool:
    """Whether activations get fixed ranges."""
    return isinstance(config, MixedConfig | QatConfig) or (
        isinstance(config, PtqConfig) and config.mode == "static"
    )


@contextmanager
def _settled(spec: EngineSpec) -> Iterator[None]:
    """Set threads, seed and int8 kernels for a job, and tell memory errors from others."""
    threads = torch.get_num_threads()
    torch.set_num_threads(spec.threads)
    try:
        with torch.random.fork_rng(devices=[]), engine_for(spec.backend):
            torch.manual_seed(spec.seed)
            yield
    except Exception as error:
        if lacks_memory(error):
            raise OutOfMemory(_OUT_OF_MEMORY) from error
        if isinstance(error, IndexError) and _UNKNOWN_ID in str(error):
            raise ModelFailed(
                "The model looked up an id that it does not know, in one of the samples it was "
                "given. Check the datasets' integer inputs against the sizes of its embeddings."
            ) from error
        raise
    finally:
        torch.set_num_threads(threads)


_UNKNOWN_ID = "index out of range in self"
"""What torch's embeddings say."""
_OUT_OF_MEMORY = (
    "The job needed more memory than there is; use a smaller batch_size, or a worker with more "
    "memory."
)
